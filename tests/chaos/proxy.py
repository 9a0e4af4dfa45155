"""A TCP proxy whose line can be bad: cut, dead without a word, slow, or torn in mid-answer."""

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

Line = Literal["good", "cut", "silent", "slow", "torn"]
"""`cut`: connections are reset and none is taken. `silent`: nothing goes through any more.
`slow`: each piece waits 0.3 s. `torn`: an answer stops after 200 bytes, and is reset."""

_SLOW_S = 0.3
_TORN_BYTES = 200


@dataclass(eq=False, slots=True)
class _Connection:
    sides: tuple[asyncio.WriteTransport, asyncio.WriteTransport]
    is_half_open: bool = False


class Proxy:
    """In front of one port of this machine. `line` may be changed at any time."""

    def __init__(self, port: int, target: int, says: Mapping[int, int] | None = None) -> None:
        """Starts nothing.

        Args:
            port: To listen at.
            target: The port that it stands for.
            says: Ports that a Sentinel answers, and what the client is told in place of each: the
                way to them goes through proxies too. All have five digits.
        """
        self.port = port
        self.answered_at = 0.0
        """When an answer last went through, in Unix seconds."""
        self.target = target
        self._says = {b"\r\n%d\r\n" % a: b"\r\n%d\r\n" % b for a, b in (says or {}).items()}
        self._line: Line = "good"
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None] | None] = set()
        """Connections; asyncio itself keeps none of them from being collected."""
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._loop = self._started.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def line(self) -> Line:
        return self._line

    @line.setter
    def line(self, line: Line) -> None:
        self._line = line
        if line in ("cut", "good"):  # what was silent does not come back to life
            self.reset()

    def reset(self) -> None:
        """Reset all connections. New ones are taken, if the line is good."""
        self._loop.call_soon_threadsafe(self._abort)

    def half_open(self) -> None:
        """Let nothing through the connections that are there, ever; and say so to no side."""
        self._loop.call_soon_threadsafe(self._forget)

    def _abort(self) -> None:
        for connection in self._open:
            if not connection.is_half_open:
                for side in connection.sides:
                    side.abort()

    def _forget(self) -> None:
        for connection in self._open:
            connection.is_half_open = True

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        async with await asyncio.start_server(self._connect, "127.0.0.1", self.port):
            self._started.set_result(asyncio.get_running_loop())
            await self._stop.wait()
            for connection in self._open:
                connection.is_half_open = False
            self._abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._line == "cut":
            writer.transport.abort()
            return
        try:
            there, here = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        connection, task = _Connection((writer.transport, here.transport)), asyncio.current_task()
        self._tasks.add(task)
        self._open.add(connection)
        asks = asyncio.create_task(self._copy(reader, here, connection, is_answer=False))
        try:
            await self._copy(there, writer, connection, is_answer=True)
            if connection.is_half_open:  # the server has gone; the client is to find that out
                await asyncio.wait([asks])
        finally:
            asks.cancel()
            self._open.discard(connection)
            self._tasks.discard(task)
            for side in connection.sides:
                side.abort()

    async def _copy(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        connection: _Connection,
        *,
        is_answer: bool,
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                if self._line == "silent" or connection.is_half_open:
                    continue
                if self._line == "slow":
                    await asyncio.sleep(_SLOW_S)
                if self._line == "torn" and is_answer and len(data) > _TORN_BYTES:
                    sink.write(data[:_TORN_BYTES])
                    await sink.drain()
                    return
                sink.write(self._told(data) if is_answer else data)
                await sink.drain()
                if is_answer:
                    self.answered_at = time.time()

    def _told(self, answer: bytes) -> bytes:
        for port, instead in self._says.items():
            answer = answer.replace(port, instead)
        return answer
