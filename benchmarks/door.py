"""Requests a second under the limits on connections: `GuardedProtocol`, uvicorn's httptools, h11.

python benchmarks/door.py

Each serves the same app in a process of its own. They take turns, and what is compared is the
processor time that a server used, with the turn of uvicorn's httptools beside it.
Small: `GET /healthz` on kept-alive connections. Large: a body of 8 MB. New: a connection each.
"""

import asyncio
import multiprocessing
import os
import socket
import statistics
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import Request

from services.http.app import create_app, server_config

KINDS = ("httptools", "guarded", "h11")
ROUNDS = 7
NUM_CONNECTIONS = 8
SMALL, LARGE, NEW = 4000, 24, 1500
BODY = b"x" * 8_000_000
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nuser-agent: benchmark\r\naccept: */*\r\n\r\n"
UPLOAD = b"POST /v1/bytes HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(BODY)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def serve(kind: str, listener: socket.socket) -> None:
    """Until it is killed."""
    app = create_app(title="door", readiness=lambda: None, body_limit_bytes=10_000_000)

    @app.post("/v1/bytes")
    async def bytes_(request: Request) -> int:
        return len(await request.body())

    config = server_config(app)
    if kind != "guarded":
        config.http = kind
    uvicorn.Server(config).run(sockets=[listener])


async def ask(streams: Streams, request: bytes, body: bytes = b"") -> None:
    """One request and its whole answer."""
    reader, writer = streams
    writer.write(request)
    writer.write(body)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(head.decode("latin-1"))
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))


async def small(port: int) -> None:
    """Kept-alive connections side by side."""

    async def one() -> None:
        streams = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(SMALL // NUM_CONNECTIONS):
            await ask(streams, HEALTH)
        streams[1].close()

    await asyncio.gather(*(one() for _ in range(NUM_CONNECTIONS)))


async def large(port: int) -> None:
    """Bodies one after the other."""
    streams = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(LARGE):
        await ask(streams, UPLOAD, BODY)
    streams[1].close()


async def new(port: int) -> None:
    """A connection for each request."""
    for _ in range(NEW):
        streams = await asyncio.open_connection("127.0.0.1", port)
        await ask(streams, HEALTH)
        streams[1].close()


@dataclass(frozen=True, slots=True)
class Server:
    """One of `KINDS`."""

    port: int
    pid: int

    def cpu_s(self, load: Callable[[int], Coroutine[None, None, None]]) -> float:
        """Processor seconds of the server for one turn."""
        before = self._used()
        asyncio.run(load(self.port))
        return self._used() - before

    def _used(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the ratios."""
    context = multiprocessing.get_context("spawn")
    servers: dict[str, Server] = {}
    processes = []
    for kind in KINDS:
        listener = socket.create_server(("127.0.0.1", 0))
        process = context.Process(target=serve, args=(kind, listener), daemon=True)
        process.start()
        processes.append(process)
        servers[kind] = Server(listener.getsockname()[1], process.pid or 0)
    for server in servers.values():
        server.cpu_s(small)  # waits in the listener's queue until the service is up
    for load in (small, new, large):
        turns = [{kind: servers[kind].cpu_s(load) for kind in KINDS} for _ in range(ROUNDS)]
        for kind in KINDS:
            ratios = sorted(turn[kind] / turn["httptools"] for turn in turns)
            median = statistics.median(turn[kind] for turn in turns)
            print(
                f"{load.__name__:6} {kind:10} {median:5.2f} s, times httptools: "
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                flush=True,
            )
    for process in processes:
        process.kill()


if __name__ == "__main__":
    main()
