"""A body of gigabytes, read by a thread from its connection: past parser, event loop and copies."""

import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from starlette.types import Scope

from services.errors import ClientGoneError, InvalidInputError, WaitTimeoutError

EXTENSION = "sgg.body"
"""An extension of the ASGI scope: `take` gives the connection, and what has come of the body."""
TakeBody = Callable[[], tuple[socket.socket, bytes]]

PULSE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""An interim answer. A client that sends `Expect: 100-continue` gets one when its body is read, and
then again and again until the answer: so it can tell work that takes long from a dead line."""
PULSE_S = 2.0
"""Between two of them."""
LINE_SILENCE_S = 10.0
"""A line over which not even a pulse comes for this long is dead."""

_INFO_BYTES = 104
_LAST_DATA_RECEIVED = slice(52, 56)
"""`tcpi_last_data_recv` of `struct tcp_info` (linux/tcp.h), in milliseconds."""
_LINGER_S = 10.0
_LINGER_BYTES = 1024 * 1024


def seconds_option(seconds: float) -> bytes:
    """A time as `SO_RCVTIMEO` and `SO_SNDTIMEO` take it."""
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))


class RawBody:
    """The body of the request that is at work, whose length its client has said.

    Entered on the event loop once nothing speaks against the body; then a thread calls `readinto`.
    From there on the connection serves this request alone: the answer closes it.

    Args:
        scope: The request's.
        silence_s: A client that sends nothing for this long is given up.

    Raises:
        InvalidInputError: The client does not say the length.
    """

    def __init__(self, scope: Scope, silence_s: float) -> None:
        stated = dict(scope["headers"]).get(b"content-length", b"")
        if not stated.isdigit():
            raise InvalidInputError("say how long the body is: send Content-Length, and no pieces")
        self.num_bytes = int(stated[:20])
        self._take: TakeBody = scope["extensions"][EXTENSION]["take"]
        self._silence_s = silence_s
        self._left = self.num_bytes
        self._socket: socket.socket | None = None
        self._first = memoryview(b"")

    def __enter__(self) -> Self:
        self._socket, first = self._take()
        self._first = memoryview(first)
        # With it one call of the kernel fills a whole buffer. The file description, and so this
        # mode, is the event loop's too, which does not read now.
        self._socket.setblocking(True)
        timeout = seconds_option(self._silence_s)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the connection to the event loop; what is unread is read away."""
        assert self._socket is not None  # it is entered
        self._socket.setblocking(False)
        if isinstance(error, Exception) and self._left:
            threading.Thread(target=_linger, args=[self._socket], daemon=True).start()
        else:
            self._socket.close()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill a buffer as far as the body goes; returns the number of bytes, 0 at its end.

        Raises:
            ClientGoneError: The client left before its end.
            WaitTimeoutError: The client fell silent.
        """
        assert self._socket is not None  # it is entered
        buffer = buffer[: self._left]
        if self._first:
            size = min(len(buffer), len(self._first))
            buffer[:size], self._first = self._first[:size], self._first[size:]
        else:
            size = self._receive(self._socket, buffer) if buffer else 0
        self._left -= size
        return size

    def stop(self) -> None:
        """Have `readinto`, in its thread, end with an error."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    @property
    def silent_s(self) -> float:
        """Seconds since something came, by the kernel's clock; 0.0 before it is entered."""
        with suppress(OSError):  # it is over
            if self._socket is not None:
                info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
                return int.from_bytes(info[_LAST_DATA_RECEIVED], sys.byteorder) / 1000
        return 0.0

    def _receive(self, connection: socket.socket, buffer: memoryview) -> int:
        try:
            size = connection.recv_into(buffer, 0, socket.MSG_WAITALL)
        except BlockingIOError as error:
            raise WaitTimeoutError(f"the body was silent for {self._silence_s:g} s") from error
        except OSError:
            size = 0
        if size == 0:
            raise ClientGoneError("the body ended early: nothing of it is kept")
        return size


def _linger(connection: socket.socket) -> None:
    """Read until the client has its answer: a close with unread bytes would take it away."""
    end = time.monotonic() + _LINGER_S
    connection.settimeout(_LINGER_S)
    with connection, suppress(OSError):
        while time.monotonic() < end and connection.recv(_LINGER_BYTES):
            pass
