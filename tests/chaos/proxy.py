"""A TCP proxy whose line can be bad: cut, dead without a word, slow, or torn in mid-answer."""

import asyncio
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Literal

Line = Literal["good", "cut", "silent", "slow", "torn"]
"""`cut`: connections are reset and none is taken. `silent`: half open, nothing goes through any
more. `slow`: each piece waits 0.3 s. `torn`: an answer stops after 200 bytes, and is reset."""

_SLOW_S = 0.3
_TORN_BYTES = 200


class Proxy:
    """In front of one port of this machine. `line` may be changed at any time."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self._target = target
        self._line: Line = "good"
        self._open: set[asyncio.WriteTransport] = set()
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
        if line in ("cut", "good"):  # what was half open does not come back to life
            self._loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        for transport in self._open:
            transport.abort()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        async with await asyncio.start_server(self._connect, "127.0.0.1", self.port):
            self._started.set_result(asyncio.get_running_loop())
            await self._stop.wait()
            self._abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._line == "cut":
            writer.transport.abort()
            return
        try:
            there, here = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        sides, task = {writer.transport, here.transport}, asyncio.current_task()
        self._tasks.add(task)
        self._open |= sides
        asks = asyncio.create_task(self._copy(reader, here, is_answer=False))
        try:
            await self._copy(there, writer, is_answer=True)
        finally:
            asks.cancel()
            self._open -= sides
            self._tasks.discard(task)
            for side in sides:
                side.abort()

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                if self._line == "silent":
                    continue
                if self._line == "slow":
                    await asyncio.sleep(_SLOW_S)
                if self._line == "torn" and is_answer and len(data) > _TORN_BYTES:
                    sink.write(data[:_TORN_BYTES])
                    await sink.drain()
                    return
                sink.write(data)
                await sink.drain()
