"""A file of gigabytes sent by the kernel, from its pages to a connection: no copy passes Python."""

import os
import select
import socket
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx

from services.errors import InvalidInputError, NotFoundError
from services.http.raw_body import seconds_option

_AT_ONCE_BYTES = 32 * 1024 * 1024
"""Between looks for an early answer; large beside what a thread waits for Python's global lock."""

_CONNECT_S = 5.0


class FileUpload:
    """One `PUT` of a file, on a connection of its own.

    Args:
        url: `http://host:port` of the service.
        file: What is sent.
        silence_s: Longest wait for a connection that takes no more bytes, or for the answer.

    Raises:
        InvalidInputError: The url is one with TLS, where the kernel cannot send a file.
        NotFoundError: The file cannot be read.
    """

    def __init__(self, url: str, file: Path, silence_s: float) -> None:
        address = urlsplit(url)
        if address.scheme != "http":
            raise InvalidInputError(f"a file is sent to http:// alone, and not to {url}")
        try:
            self._file = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFoundError(f"there is nothing to send: {file}: {error.strerror}") from error
        self._root, self._silence_s = address.path.rstrip("/"), silence_s
        self._is_stopped = False
        connect_s = min(_CONNECT_S, silence_s)
        self._connection = HTTPConnection(address.hostname or "", address.port, connect_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        os.close(self._file)

    def send(self, path: str, headers: dict[str, str]) -> httpx.Response:
        """Send the file and read the answer, which may come before all is sent. It blocks.

        Raises:
            TimeoutError: Silence.
            OSError: The connection is lost.
            HTTPException: What comes back is no answer.
        """
        size = os.fstat(self._file).st_size
        self._connection.connect()
        self._connection.putrequest("PUT", self._root + path)
        for name, value in (headers | {"Content-Length": str(size)}).items():
            self._connection.putheader(name, value)
        self._connection.endheaders()
        with suppress(ConnectionError):  # it may have answered why
            self._send_file(size)
        if self._is_stopped:
            raise ConnectionAbortedError("the upload was given up")
        answer = self._connection.getresponse()
        return httpx.Response(answer.status, headers=dict(answer.headers), content=answer.read())

    def stop(self) -> None:
        """Have `send`, in its thread, end with an error."""
        self._is_stopped = True
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def _send_file(self, size: int) -> None:
        to, answered = self._connection.sock, select.poll()
        answered.register(to, select.POLLIN)
        # With it the kernel sends all of `_AT_ONCE_BYTES` in one call.
        to.settimeout(None)
        to.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds_option(self._silence_s))
        start = 0
        try:
            while start < size and not (answered.poll(0) or self._is_stopped):
                start += os.sendfile(to.fileno(), self._file, start, _AT_ONCE_BYTES)
        except BlockingIOError as error:
            raise TimeoutError("it takes no more bytes") from error
        finally:
            to.settimeout(self._silence_s)
