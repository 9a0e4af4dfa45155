"""Seconds, and what they cost rank 0, until all of 4 to 64 servers serve a version over `http`.

    python -m benchmarks.fan_out [--mib 8] [--line 4] [--servers 4,16,64]

Publisher and servers are real, but for the servers' model and their work on the queue. All share
this machine, so each sender is held to a line of so many MB/s (`SO_MAX_PACING_RATE`): else the
cores are what is measured. The same publisher then sends the version to each server itself, one
after the other: a line that is shared takes as long. `bound` is what the lines allow: as many sends
as there are rounds.
"""

import argparse
import asyncio
import multiprocessing
import os
import platform
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, cast

import uvicorn

from benchmarks.many_servers import redis_server
from rollout_service.fake.engine import FakeEngine
from rollout_service.http.app import RolloutProcess
from services.host.ports import free_port
from services.http.app import bind, server_config
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.registry import Registry
from services.schemas.weights import ServerRecord
from services.settings import Settings
from weight_sync.fan_out import num_rounds
from weight_sync.publishing.publisher import WeightPublisher
from weight_sync.transports.http import HttpSender
from weight_sync.transports.sender import CheckedManifest, Peer, select

SPAWN = multiprocessing.get_context("spawn")
NUM_PROCESSES = 2
NUM_TENSORS = 16
_SO_MAX_PACING_RATE = 47
"""Linux's; not among Python's names."""


class Result(NamedTuple):
    """One version, published."""

    seconds: float
    rank_0_s: float
    """CPU seconds of the publisher's process, writing and hashing included."""
    num_sent: int
    """Times that rank 0 sent it."""


class CountingSender(HttpSender):
    """Counts what rank 0 sends."""

    num_sent = 0

    async def _give(self, checked: CheckedManifest, giver: Peer | None, to: Peer) -> bool:
        self.num_sent += giver is None
        return await super()._give(checked, giver, to)


class EachSender(CountingSender):
    """Sends to each server itself."""

    async def stage(self, peers: Sequence[Peer], checked: CheckedManifest) -> list[Peer]:
        """See `Sender.stage`."""
        line = asyncio.Lock()

        async def give(peer: Peer) -> bool:
            async with line:
                return await self._give(checked, None, peer)

        return await select(peers, give)


def settings_of(folder: str, run: str, redis_url: str) -> Settings:
    """One run's."""
    return Settings.model_validate(
        {
            "run": {"name": run, "root": folder},
            "model": {"path": "fake"},
            "data": {"train": "unused"},
            "redis": {"url": redis_url},
            "rollout": {"engine": "fake"},
            "weights": {"transport": "http"},
        }
    )


def hold_to_line(bytes_per_s: float) -> None:
    """What this process's clients send goes at this pace, each connection for itself."""
    plain = HTTPConnection.connect

    def connect(self: HTTPConnection) -> None:
        plain(self)
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, int(bytes_per_s))

    HTTPConnection.connect = connect  # type: ignore[method-assign]


def serve(settings: Settings, number: int, bytes_per_s: float) -> None:
    """That many servers in this process, until it is killed."""
    hold_to_line(bytes_per_s)

    async def one() -> None:
        url = f"http://127.0.0.1:{free_port()}"
        rollout = settings.rollout.model_copy(update={"url": url})
        own = settings.model_copy(update={"rollout": rollout})
        process = RolloutProcess(own, lambda: FakeEngine(tokens_per_s=1.0, max_model_len=64))
        listener = bind(process.app, url)
        await process.server.start()
        # Without its work on the queue, which sixty-four on two cores would drown in.
        config = server_config(process.app)
        config.lifespan = "off"
        await register(settings, url)
        await uvicorn.Server(config).serve(sockets=[listener])

    async def all_of_them() -> None:
        # Threads as a process of each would have: one sends, one receives.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4 * number))
        await asyncio.gather(*(one() for _ in range(number)))

    asyncio.run(all_of_them())


async def register(settings: Settings, url: str) -> None:
    """One heartbeat that lasts."""
    record = ServerRecord(
        server_id=url.rpartition(":")[2],
        url=url,
        host="here",
        gpu=None,
        state="ready",
        policy_version=0,
        tokens_per_s=0,
        groups_done=0,
    )
    redis = connect(settings.redis)
    await Registry(redis, RunKeys(settings.run.name)).heartbeat(record, ttl_s=3600)
    await redis.aclose()


def publish(
    settings: Settings, sender: type[CountingSender], mib: int, bytes_per_s: float, out: Connection
) -> None:
    """Rank 0, in a process of its own: a small version to begin with, then the measured one."""
    import torch

    hold_to_line(bytes_per_s)
    publisher = WeightPublisher(settings, int(time.time()))
    publisher._sender = counting = sender(settings)
    for version, elements in ((1, 64), (2, mib * 2**18 // NUM_TENSORS)):
        weights = {f"t{i}": torch.rand(elements) for i in range(NUM_TENSORS)}
        before, cpu_s, sent = time.perf_counter(), time.process_time(), counting.num_sent
        served = publisher.begin(weights.items(), version).result()
        seconds, rank_0_s = time.perf_counter() - before, time.process_time() - cpu_s
    out.send((served, Result(seconds, rank_0_s, counting.num_sent - sent)))
    publisher.close()


@contextmanager
def servers(settings: Settings, number: int, bytes_per_s: float) -> Iterator[None]:
    """That many, once all have registered."""
    shares = [len(range(i, number, NUM_PROCESSES)) for i in range(NUM_PROCESSES)]
    processes: list[BaseProcess] = [
        SPAWN.Process(target=serve, args=(settings, share, bytes_per_s))
        for share in shares
        if share
    ]
    for process in processes:
        process.start()
    try:
        while asyncio.run(num_ready(settings)) < number:
            time.sleep(0.5)
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


async def num_ready(settings: Settings) -> int:
    """Servers that could take a version."""
    redis = connect(settings.redis)
    records = await Registry(redis, RunKeys(settings.run.name)).servers()
    await redis.aclose()
    return sum(record.state == "ready" for record in records)


def measure(
    settings: Settings, sender: type[CountingSender], number: int, options: argparse.Namespace
) -> Result:
    """Publish to so many servers."""
    receiving, sending = SPAWN.Pipe(duplex=False)
    arguments = (settings, sender, options.mib, options.line * 1e6, sending)
    process = SPAWN.Process(target=publish, args=arguments)
    process.start()
    served, result = cast(tuple[int, Result], receiving.recv())
    process.join()
    assert served == number, f"{served} of {number} servers serve it"
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=8)
    parser.add_argument("--line", type=float, default=4.0, help="MB/s of each host")
    parser.add_argument("--servers", default="4,16,64")
    options = parser.parse_args()
    print(
        f"{options.mib} MiB, lines of {options.line:g} MB/s; {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}"
    )
    print(f"{'servers':>8} {'':9} {'seconds':>8} {'bound':>6} {'sends':>6} {'rank 0 CPU s':>13}")
    send_s = options.mib * 2**20 / 1e6 / options.line
    os.environ["SGG_DATA_TOKEN"], os.environ["SGG_ADMIN_TOKEN"] = (
        secrets.token_hex(16) for _ in range(2)
    )
    folder = tempfile.mkdtemp(prefix="sgg-fan-out-", dir="/dev/shm")
    os.environ["TMPDIR"] = folder  # spools in memory: the disk is not what is measured
    try:
        with redis_server() as redis_url:
            for number in map(int, options.servers.split(",")):
                settings = settings_of(folder, f"servers-{number}", redis_url)
                with servers(settings, number, options.line * 1e6):
                    for name, sender, rounds in (
                        ("passed on", CountingSender, num_rounds(number)),
                        ("to each", EachSender, number),
                    ):
                        result = measure(settings, sender, number, options)
                        print(
                            f"{number:8} {name:9} {result.seconds:8.1f} {rounds * send_s:6.1f} "
                            f"{result.num_sent:6} {result.rank_0_s:13.2f}",
                            flush=True,
                        )
                shutil.rmtree(Path(folder) / f"servers-{number}", ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
