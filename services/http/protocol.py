"""HTTP/1.1 connections whose cost to a stranger's bytes is bounded before any token is looked at.

| a client | costs it |
|---|---|
| sends a long request line, headers, heads of chunks, or trailers | 431, and its connection |
| is slow to send a head, or the rest of a refused body | 408, and its connection, after `HEAD_S` |
| does not read its answer | its connection, after `HEAD_S` without one byte taken |
| opens more connections than a service keeps | the connection that has been idle for longest |

The time for a body is kept where the body is read (`services.http.guard`). It is httptools' parser
as uvicorn drives it, with counts beside it: `benchmarks/door.py` has what they cost.
"""

import os
import resource
import socket
import sys
from asyncio import TimerHandle, Transport
from functools import cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from services.errors import (
    ClientGoneError,
    HeadTooLargeError,
    MalformedRequestError,
    SggError,
    SlowRequestError,
)
from services.http.problems import problem_response
from services.http.raw_body import EXTENSION, PULSE, PULSE_S

HEAD_S = 10.0
"""From a connection, or from the answer before, to the end of a request's headers."""
MAX_HEAD_BYTES = 32 * 1024
"""Bytes of request line and headers; of what stands between two pieces of a body, and after it."""
MAX_HEADERS = 100
MAX_CONNECTIONS = 1024
"""Connections of one service; at most half of the files that its process may have open."""


@cache
def max_connections() -> int:
    """How many connections a service of this process keeps open."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Example: `uvicorn.Config(app, http=GuardedProtocol, ws="none")`."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.idle_since: float | None = None
        """On the loop's clock; None while a request is at work."""
        self._head_bytes = 0
        self._unframed = 0
        """Bytes received since the last head or piece of a body was complete."""
        self._unsent: int | None = None
        """Bytes of answers that the client had not taken at the last look; None for none."""
        self._timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Its time begins; of too many connections the one that is idle for longest ends."""
        super().connection_made(transport)
        self._rest()
        if len(self.connections) > max_connections():
            idle = [c for c in self.connections if isinstance(c, GuardedProtocol)]
            min(idle, key=lambda c: c.idle_since or self.loop.time()).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End its timer too."""
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse, and count what is neither head nor body yet."""
        self._unframed += len(data)
        super().data_received(data)
        if self._unframed > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer, which is not read."""
        self._count(len(name) + len(value))
        if len(self.headers) >= MAX_HEADERS:
            raise _too_large()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request comes to work; one more may wait behind it on its connection."""
        self._unframed = 0
        if self.pipeline:
            raise MalformedRequestError("send the next request after an answer")
        self.scope["extensions"] = {EXTENSION: {"take": self.take_body}}
        super().on_headers_complete()
        self.idle_since = None
        if self.expect_100_continue:
            self.loop.call_later(PULSE_S, self._pulse, self.cycle)

    def _pulse(self, cycle: RequestResponseCycle) -> None:
        """Tell a client that its request is at work, until its answer begins."""
        if cycle.response_started or cycle.disconnected or self.transport.is_closing():
            return
        if not cycle.waiting_for_100_continue and not self.pipeline:
            self.transport.write(PULSE)
        self.loop.call_later(PULSE_S, self._pulse, cycle)

    def take_body(self) -> tuple[socket.socket, bytes]:
        """The connection, and what has come of the present request's body; the caller reads on.

        No request comes after it: the parser has lost count.

        Raises:
            ClientGoneError: There is no connection any more.
        """
        if self.transport.is_closing():
            raise ClientGoneError("the client left before its body was read")
        cycle = self.cycle
        if cycle.waiting_for_100_continue:
            self.transport.write(PULSE)
            cycle.waiting_for_100_continue = False
        self.flow.pause_reading()
        cycle.keep_alive = False
        shared = os.dup(self.transport.get_extra_info("socket").fileno())
        return socket.socket(fileno=shared), bytes(cycle.body)

    def on_body(self, body: bytes) -> None:
        self._unframed = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Begin to rest, unless a request waits."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._rest()

    def pause_writing(self) -> None:
        """Look after a client that is slower to read than the service to write."""
        super().pause_writing()
        self._look_after(HEAD_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent = None

    def send_400_response(self, msg: str) -> None:
        """Called where the parser, or a count above, raised."""
        raised = sys.exception()
        cause = raised.__context__ if raised else None
        self._refuse(cause if isinstance(cause, SggError) else MalformedRequestError(msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Such a request is served as if it did not ask: nothing to warn of."""

    def _count(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _too_large()

    def _rest(self) -> None:
        self.idle_since = self.loop.time()
        self._look_after(HEAD_S)

    def _look_after(self, seconds: float) -> None:
        """One timer a connection, not one a request: most find that all is well."""
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        unsent, before = self.transport.get_write_buffer_size(), self._unsent
        self._unsent = unsent or None
        if unsent:
            if before is not None and unsent >= before:
                self.transport.abort()
            else:
                self._look_after(HEAD_S)
        elif self.idle_since is not None:
            left = self.idle_since + HEAD_S - self.loop.time()
            if left > 0:
                self._look_after(left)
            else:
                self._refuse(SlowRequestError(f"no whole request came within {HEAD_S:g} s"))

    def _refuse(self, error: SggError) -> None:
        """Say why where nothing else is being said, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
        elif not self.transport.is_closing():
            answer = problem_response(error)
            head = [b"%s: %s\r\n" % pair for pair in answer.raw_headers]
            lines = [STATUS_LINE[error.status], *head, b"connection: close\r\n\r\n"]
            self.transport.write(b"".join(lines) + bytes(answer.body))
            self.transport.close()
            self._look_after(HEAD_S)


def _too_large() -> HeadTooLargeError:
    return HeadTooLargeError(
        f"request line and headers are over {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers; "
        "send what is long in the body"
    )
