"""A file of gigabytes sent by the kernel, from its pages to a connection: no copy passes Python."""

import os
import select
import socket
import time
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx

from services.errors import InvalidInputError, NotFoundError
from services.http.raw_body import LINE_SILENCE_S, PULSE, seconds_option

_AT_ONCE_BYTES = 32 * 1024 * 1024
"""Between looks for an early answer; large beside what a thread waits for Python's global lock."""

_CONNECT_S = 5.0
_LOOK_S = 1.0
"""Between looks at a connection over which nothing moves."""


class FileUpload:
    """One `PUT` of a file, on a connection of its own.

    Args:
        url: `http://host:port` of the service.
        file: What is sent.
        silence_s: Longest wait for a service that takes no more bytes, or has them all, and says
            that it is at work (`PULSE`).

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
        self._heard_at = self._moved_at = 0.0
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
            TimeoutError: The service takes no more, or does not answer.
            OSError: The connection is lost, or dead.
            HTTPException: What comes back is no answer.
        """
        size = os.fstat(self._file).st_size
        self._connection.connect()
        self._connection.putrequest("PUT", self._root + path)
        more = {"Content-Length": str(size), "Expect": "100-continue"}
        for name, value in (headers | more).items():
            self._connection.putheader(name, value)
        self._connection.endheaders()
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
        """Send it, and wait for the answer; return when that begins."""
        to = self._connection.sock
        # With it the kernel sends all of `_AT_ONCE_BYTES` in one call.
        to.settimeout(None)
        to.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds_option(_LOOK_S))
        self._heard_at = self._moved_at = time.monotonic()
        start = 0
        try:
            while not (self._is_answered(start == size) or self._is_stopped):
                if start < size:
                    start += self._send_some(start)
                self._check_line()
        except ConnectionError:
            if not self._is_answered(wait=False):  # it may have answered why
                raise
        finally:
            to.settimeout(LINE_SILENCE_S)

    def _send_some(self, start: int) -> int:
        try:
            sent = os.sendfile(self._connection.sock.fileno(), self._file, start, _AT_ONCE_BYTES)
        except BlockingIOError:
            return 0
        self._moved_at = time.monotonic()
        return sent

    def _is_answered(self, wait: bool) -> bool:
        """Whether the answer, or an end of the connection, is there; pulses are taken away."""
        connection, readable = self._connection.sock, select.poll()
        readable.register(connection, select.POLLIN)
        while readable.poll(1000 * _LOOK_S * wait):
            head = connection.recv(len(PULSE), socket.MSG_PEEK)
            if not head or not PULSE.startswith(head):
                return True
            if len(head) == len(PULSE):
                connection.recv(len(PULSE))
                self._heard_at = time.monotonic()
            wait = False
        return False

    def _check_line(self) -> None:
        """Raises where nothing has been heard of the service, or has moved, for too long."""
        now = time.monotonic()
        if now - self._heard_at > LINE_SILENCE_S:
            raise ConnectionAbortedError(f"no word for {LINE_SILENCE_S:g} s: the line is dead")
        if now - self._moved_at > self._silence_s:
            raise TimeoutError("it takes no more bytes, or does not answer")
