"""A TCP proxy that cuts connections after a number of bytes, or never lets them through."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from services.host.ports import free_port


class CuttingProxy:
    """In front of one server; its behaviour may be changed at any time."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.cuts: list[int] = []
        """Bytes after which the next connections that bring as many are reset, one by one."""
        self.num_cut = 0

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._connect, "127.0.0.1", urlsplit(self.url).port)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(*self._target)
        back = asyncio.create_task(self._copy(there, writer, counted=False))
        try:
            await self._copy(reader, here, counted=True)
        finally:
            back.cancel()
            for side in (writer, here):
                side.transport.abort()

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        done = 0
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                done += len(data)
                cuts = self.cuts
                if counted and cuts and done >= cuts[0]:
                    del cuts[0]
                    self.num_cut += 1
                    return
                sink.write(data)
                await sink.drain()


@contextmanager
def proxied(target: str) -> Iterator[CuttingProxy]:
    """A running proxy."""
    proxy = CuttingProxy(target)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with await proxy.serve():
            started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

    # asyncio.run cancels what still copies, and waits for it: nothing of a proxy outlives it.
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    loop, stop = started.result(timeout=10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
