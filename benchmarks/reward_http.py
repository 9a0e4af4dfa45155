"""The reward service over HTTP, one worker on one core, loaded by this script from another core.

python benchmarks/reward_http.py

The load is made with plain sockets under asyncio: connections stay open, bodies are encoded before
the clock starts, answers are read but not parsed. Open-loop latencies count from the time at which
a request was due, so that a slow answer does not hide the ones behind it.
"""

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from benchmarks.honest_graphs import honest_groups
from reward_service.scoring import make_scorer
from reward_service.service.workers import settle
from services.host.environment import child_environment
from services.host.ports import free_port
from services.schemas.rewards import RewardGroup, RewardRequest

T = TypeVar("T")

RUBRIC = "balanced"
BATCH = 64
GROUP_SIZE = 8
SIZES = ((7, 5), (30, 20), (60, 60))
ROUNDS = 7
BATCHES_A_ROUND = 4
CLOSED_LOOPS = (1, 2, 4, 8, 16, 32)
CLOSED_LOOP_S = 3.0
OPEN_LOOP_S = 20.0
NUM_CONNECTIONS = 64
"""Connections of the open loop: more than are ever busy while the service keeps up."""
PROBES_PER_S = 50
STALLS_S = 3.0
SETTINGS = """\
[model]
path = "unused"
[data]
train = "unused"
"""


@dataclass(frozen=True, slots=True)
class Connection:
    """One kept-alive HTTP/1.1 connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """To the service on this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**24))

    async def ask(self, request: bytes) -> bytes:
        """The body of the answer to an encoded request.

        Raises:
            RuntimeError: The status is not 200.
        """
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(line for line in lines if line.startswith(b"content-length:"))
        body = await self.reader.readexactly(int(length.partition(b":")[2]))
        if b" 200 " not in lines[0]:
            raise RuntimeError(f"the service answered {lines[0]!r}: {body[:500]!r}")
        return body


def main() -> None:
    """Start the service, print what it does under each kind of load, end it."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("reward_http: needs two cores, one for the service and one for the load")
    with service(cores[0]) as port:
        print(f"Reward service, one worker on one core; load from another. `{RUBRIC}`.")
        print(f"{stalls(cores[0])}\n")
        print("\n".join([*batch_table(port, *cores[:2]), ""]))
        os.sched_setaffinity(0, {cores[1]})
        asyncio.run(single_groups(port))
        asyncio.run(health_under_load(port))


def stalls(core: int) -> str:
    """What the machine itself takes from a core: latencies cannot be better than this."""
    os.sched_setaffinity(0, {core})
    gaps, before = [], time.perf_counter()
    end = before + STALLS_S
    while before < end:
        now = time.perf_counter()
        gaps.append(now - before)
        before = now
    long = [gap for gap in gaps if gap > 0.001]
    return (
        f"Its core, while idle, stops for over 1 ms {len(long)} times in {STALLS_S:g} s, "
        f"{1000 * max(gaps):.1f} ms at most."
    )


@contextmanager
def service(core: int) -> Iterator[int]:
    """A real service process on one core; its port."""
    port, mine = free_port(), os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "reward.toml"
        config.write_text(SETTINGS)
        command = [sys.executable, "-m", "cli.main", "serve", "reward"]
        with (Path(folder) / "log").open("wb") as log:
            os.sched_setaffinity(0, {core})  # a child, and its threads, inherit it
            process = subprocess.Popen(
                [*command, "--config", str(config), "--port", str(port)],
                stdout=log,
                stderr=log,
                env=child_environment(OMP_NUM_THREADS="1"),
            )
            os.sched_setaffinity(0, mine)
        try:
            _wait_ready(port, process, Path(folder) / "log")
            yield port
        finally:
            process.terminate()
            process.wait()


def batch_table(port: int, server_core: int, load_core: int) -> Iterator[str]:
    """Large requests, one after another, beside the same groups scored in this process."""
    yield f"Requests of {BATCH} groups of {GROUP_SIZE}, one after another (aim: 70 %):\n"
    yield "| size | in process, graphs/s | over HTTP, graphs/s | share | request | load's CPU |"
    yield "|---|--:|--:|--:|--:|--:|"
    scorer = make_scorer(RUBRIC)
    settle()  # memory as in the service
    for num_objects, num_triplets in SIZES:
        groups = honest_groups(BATCH, GROUP_SIZE, num_objects, num_triplets)
        request = encoded(groups)
        _check_equal(port, groups, request)
        inside, outside, busy = [], [], []
        for _ in range(ROUNDS):  # alternating: a slow minute of the machine is everyone's
            os.sched_setaffinity(0, {server_core})  # where the service idles meanwhile
            start = time.perf_counter()
            for _ in range(BATCHES_A_ROUND):
                scorer.score(groups)
            inside.append(time.perf_counter() - start)
            os.sched_setaffinity(0, {load_core})
            seconds, share = asyncio.run(_timed(_one_after_another(port, request)))
            outside.append(seconds)
            busy.append(share)
        graphs = BATCH * GROUP_SIZE * BATCHES_A_ROUND
        rates = [graphs / statistics.median(seconds) for seconds in (inside, outside)]
        yield (
            f"| {num_objects} x {num_triplets} | {rates[0]:,.0f} | {rates[1]:,.0f} "
            f"| {100 * rates[1] / rates[0]:.0f} % | {len(request) / 1e6:.2f} MB "
            f"| {100 * statistics.median(busy):.0f} % |"
        )


async def single_groups(port: int) -> None:
    """Requests of one group: how many a second at most, and how long they take at half of that."""
    groups = honest_groups(256, GROUP_SIZE, *SIZES[0])
    requests = [encoded([group]) for group in groups]
    print(f"Requests of one group of {GROUP_SIZE}, {SIZES[0][0]} x {SIZES[0][1]}:\n")
    print("| closed loop, connections | requests/s | load's CPU |\n|--:|--:|--:|")
    best = 0.0
    for num_connections in CLOSED_LOOPS:
        (count, seconds), busy = await _with_cpu(_closed_loop(port, requests, num_connections))
        best = max(best, count / seconds)
        print(f"| {num_connections} | {count / seconds:,.0f} | {100 * busy:.0f} % |")
    rate = best / 2
    (latencies, lateness), busy = await _with_cpu(_open_loop(port, requests, rate))
    print(
        f"\nHalf of the best, {rate:,.0f} requests/s, Poisson arrivals, {len(latencies)} requests, "
        f"from the time due (aim: p99 < 10 ms):\n{percentiles(latencies)}; sent late by the load: "
        f"p99 {1000 * _quantile(lateness, 0.99):.2f} ms; load's CPU {100 * busy:.0f} %\n"
    )


async def health_under_load(port: int) -> None:
    """`/healthz` while two connections send large requests without a pause."""
    request = encoded(honest_groups(BATCH, GROUP_SIZE, *SIZES[1]))
    stop = asyncio.Event()
    load = [asyncio.create_task(_until(stop, port, request)) for _ in range(2)]
    probe = b"GET /healthz HTTP/1.1\r\nHost: reward\r\n\r\n"
    latencies, _ = await _open_loop(port, [probe], PROBES_PER_S)
    stop.set()
    batches = sum(await asyncio.gather(*load))
    print(
        f"`/healthz` while 2 connections send {SIZES[1][0]} x {SIZES[1][1]} batches without a "
        f"pause ({batches} in {OPEN_LOOP_S:g} s):\n{percentiles(latencies)}; "
        f"{len(latencies)} probes"
    )


def encoded(groups: Sequence[RewardGroup]) -> bytes:
    """A whole HTTP request that scores groups."""
    body = RewardRequest(rubric=RUBRIC, groups=list(groups)).model_dump_json().encode()
    head = (
        "POST /v1/rewards HTTP/1.1\r\nHost: reward\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def percentiles(seconds: Sequence[float]) -> str:
    """p50, p99 and the longest, in milliseconds."""
    parts = [("p50", 0.5), ("p99", 0.99), ("max", 1.0)]
    return ", ".join(f"{name} {1000 * _quantile(seconds, q):.2f} ms" for name, q in parts)


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def _wait_ready(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the service is not ready:\n{log.read_text()[-4000:]}")


def _check_equal(port: int, groups: list[RewardGroup], request: bytes) -> None:
    """What comes over HTTP is what the scorer says."""

    async def ask() -> bytes:
        connection = await Connection.open(port)
        return await connection.ask(request)

    answer = json.loads(asyncio.run(ask()))
    totals = [reward["total"] for group in answer["groups"] for reward in group["rewards"]]
    expected = [r.total for group in make_scorer(RUBRIC).score(groups) for r in group.rewards]
    if any(abs(a - b) > 1e-9 for a, b in zip(totals, expected, strict=True)):
        raise RuntimeError("the service's rewards are not the scorer's")


async def _one_after_another(port: int, request: bytes) -> None:
    connection = await Connection.open(port)
    for _ in range(BATCHES_A_ROUND):
        await connection.ask(request)


async def _closed_loop(
    port: int, requests: Sequence[bytes], num_connections: int
) -> tuple[int, float]:
    """Answers and seconds of connections that each ask again as soon as they are answered."""
    connections = [await Connection.open(port) for _ in range(num_connections)]
    start = time.perf_counter()

    async def run(connection: Connection, offset: int) -> int:
        count = 0
        while time.perf_counter() - start < CLOSED_LOOP_S:
            await connection.ask(requests[(offset + count) % len(requests)])
            count += 1
        return count

    counts = await asyncio.gather(*(run(c, 31 * i) for i, c in enumerate(connections)))
    return sum(counts), time.perf_counter() - start


async def _open_loop(
    port: int, requests: Sequence[bytes], rate: float
) -> tuple[list[float], list[float]]:
    """Latencies from the time due, and how late each request was sent, in seconds."""
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(NUM_CONNECTIONS):
        idle.put_nowait(await Connection.open(port))
    latencies: list[float] = []
    lateness: list[float] = []

    async def run(request: bytes, due: float) -> None:
        connection = await idle.get()
        lateness.append(time.perf_counter() - due)
        await connection.ask(request)
        latencies.append(time.perf_counter() - due)
        idle.put_nowait(connection)

    tasks: list[asyncio.Task[None]] = []
    rng, due = random.Random(0), time.perf_counter()
    end = due + OPEN_LOOP_S
    while due < end:
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(run(requests[len(tasks) % len(requests)], due)))
    await asyncio.gather(*tasks)
    return latencies, lateness


async def _until(stop: asyncio.Event, port: int, request: bytes) -> int:
    """Ask without a pause; the number of answers."""
    connection, count = await Connection.open(port), 0
    while not stop.is_set():
        await connection.ask(request)
        count += 1
    return count


async def _with_cpu(work: Awaitable[T]) -> tuple[T, float]:
    """What some work returns, and the share of a core that this process used meanwhile."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = await work
    return result, (time.process_time() - cpu) / (time.perf_counter() - wall)


async def _timed(work: Awaitable[None]) -> tuple[float, float]:
    """Seconds of some work, and the share of a core that this process used meanwhile."""
    start = time.perf_counter()
    _, share = await _with_cpu(work)
    return time.perf_counter() - start, share


if __name__ == "__main__":
    main()
