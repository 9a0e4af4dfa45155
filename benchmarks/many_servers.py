"""Groups a second of 1 to 64 rollout servers on one queue, and how much one Redis can take.

python benchmarks/many_servers.py

Servers are real but for their model: the fake engine samples at a fixed pace, low enough that this
machine's cores are not what saturates first. The queue alone is then driven by as many clients as
it takes, each moving groups through all that happens to one: asked for, claimed, completed, and
taken by the trainer.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import os
import platform
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from rollout_service.fake.engine import FakeEngine
from rollout_service.queue.membership import Membership
from rollout_service.queue.worker import QueueWorker
from rollout_service.server import RolloutServer
from services.host.ports import free_port
from services.images import ImageStore
from services.redis.client import connect, redis_answers
from services.redis.keys import PROMPT_LANES, RunKeys, prompt_stream
from services.redis.queue import RedisQueue
from services.redis.registry import Registry
from services.redis.server import redis_server_command
from services.schemas.common import ChatMessage, ImagePart, Sampling, TextPart
from services.schemas.prompts import PromptGroup
from services.settings import Settings
from services.telemetry import Tracing

SPAWN = multiprocessing.get_context("spawn")
NUM_SERVERS = (1, 2, 4, 8, 16, 32, 64)
NUM_PROCESSES = 4
TOKENS_PER_S = 500.0
SAMPLING = Sampling(n=8, max_tokens=48)
GROUPS_IN_FLIGHT = 4
"""Groups in flight at one server; the queue is kept twice as full."""
NUM_IMAGES = 64
IMAGE_BYTES = 50_000
WARM_UP_S = 4.0
MEASURED_S = 15.0
NUM_CLIENTS = (1, 2, 4, 8, 16, 32)
CLIENT_PROCESSES = 2
CYCLES_S = 4.0
PROMPT_BYTES, RESULT_BYTES = 1_000, 20_000
NUM_LEASED = 512
"""Leases held meanwhile: 64 servers with 8 each."""


@contextmanager
def redis_server() -> Iterator[str]:
    """A server of our own, as `sgg-rl serve redis` starts it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = redis_server_command(Path(folder), port)
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        url = f"redis://127.0.0.1:{port}/0"
        while not redis_answers(url):
            time.sleep(0.05)
        try:
            yield url
        finally:
            server.kill()
            server.wait()


def settings_of(folder: str, run: str, redis_url: str) -> Settings:
    """One run's settings; its servers are told apart by their random names."""
    return Settings.model_validate(
        {
            "run": {"name": run, "root": folder},
            "model": {"path": "fake"},
            "data": {"train": "unused"},
            "redis": {"url": redis_url},
            "rollout": {"engine": "fake", "groups_in_flight": GROUPS_IN_FLIGHT},
        }
    )


# Servers


def serve(shared: Settings, number: int) -> None:
    """That many servers in this process, until it is killed."""

    async def one() -> None:
        url = f"http://server-{uuid.uuid4().hex}:8200"  # each server has an address of its own
        rollout = shared.rollout.model_copy(update={"url": url})
        settings = shared.model_copy(update={"rollout": rollout})
        redis, keys = connect(settings.redis), RunKeys(settings.run.name)
        engine = FakeEngine(tokens_per_s=TOKENS_PER_S, max_model_len=4096)
        server = RolloutServer(
            settings, lambda: engine, CollectorRegistry(), Tracing("bench", None)
        )
        registry, queue = Registry(redis, keys), RedisQueue(redis, keys)
        images = ImageStore(settings.run.files.images, redis, keys)
        membership = Membership(server, registry, images)
        worker = QueueWorker(server, queue, registry, images, membership.lanes, settings)
        async with membership.joined():
            await server.start()
            await worker.run()

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(number)))

    asyncio.run(all_of_them())


class Trainer:
    """Keeps the queue full and counts what comes back."""

    def __init__(self, settings: Settings) -> None:
        self._redis, keys = connect(settings.redis), RunKeys(settings.run.name)
        self.queue, self.registry = RedisQueue(self._redis, keys), Registry(self._redis, keys)
        store = ImageStore(settings.run.files.images)
        images = [os.urandom(IMAGE_BYTES) for _ in range(NUM_IMAGES)]
        self._refs = itertools.cycle([store.put(image) for image in images])
        self._numbers = itertools.count()

    async def ask(self) -> None:
        """One more group."""
        number = next(self._numbers)
        prompt = PromptGroup(
            group_id=f"g{number}",
            incarnation=1,
            epoch=0,
            index=number,
            messages=[ChatMessage(role="user", content=[ImagePart(), TextPart(text="What?")])],
            images=[next(self._refs)],
            sampling=SAMPLING.model_copy(update={"seed": number}),
        )
        body = prompt.model_dump_json().encode()
        await self.queue.enqueue(prompt_stream(prompt), prompt.work_id, body)

    async def take(self) -> float:
        """Wait for a group; when it came."""
        while True:
            lease = await self.queue.claim("rollouts", "trainer", lease_s=60, block_s=1)
            if lease is not None:
                await self.queue.complete(lease)
                return time.perf_counter()

    async def groups_per_s(self, num_servers: int) -> float:
        """Once all servers are here and warm."""
        while True:
            if len(await self.registry.servers()) == num_servers:
                break
            await asyncio.sleep(0.1)
        for _ in range(num_servers * GROUPS_IN_FLIGHT * 2):
            await self.ask()
        start = time.perf_counter() + WARM_UP_S
        times: list[float] = []
        while not times or times[-1] - start < MEASURED_S:
            at = await self.take()
            await self.ask()
            if at >= start:
                times.append(at)
        await self._redis.aclose()
        return (len(times) - 1) / (times[-1] - times[0])


def measure_servers(redis_url: str) -> float:
    """Print the table; groups a second of one server."""
    print(f"\n{'servers':>8} {'groups/s':>9} {'of linear':>9}   this machine's cores busy")
    alone = 0.0
    for num_servers in NUM_SERVERS:
        with tempfile.TemporaryDirectory() as folder:
            settings = settings_of(folder, f"servers-{num_servers}", redis_url)
            shares = [len(range(i, num_servers, NUM_PROCESSES)) for i in range(NUM_PROCESSES)]
            processes = [SPAWN.Process(target=serve, args=(settings, n)) for n in shares if n]
            for process in processes:
                process.start()
            try:
                busy = busy_cpu_s()
                began = time.perf_counter()
                rate = asyncio.run(Trainer(settings).groups_per_s(num_servers))
                cores = (busy_cpu_s() - busy) / (time.perf_counter() - began)
            finally:
                for process in processes:
                    process.kill()
                    process.join()
        alone = alone or rate
        print(f"{num_servers:8} {rate:9.1f} {rate / alone / num_servers:9.1%}   {cores:.1f}")
    return alone


def busy_cpu_s() -> float:
    """CPU time of the whole machine so far, other people's included."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


# The queue alone


def cycle(redis_url: str, run: str, lanes: tuple[str, ...], clients: int, offset: int) -> int:
    """Groups that this many clients move from beginning to end in `CYCLES_S`."""
    prompt, result = os.urandom(PROMPT_BYTES), os.urandom(RESULT_BYTES)

    async def client(number: int, until: float) -> int:
        redis = connect(redis_url)
        queue = RedisQueue(redis, RunKeys(run))
        name, done = f"{offset}-{number}", 0
        while time.monotonic() < until:
            await queue.enqueue(lanes[(number + done) % len(lanes)], f"{name}-{done}", prompt)
            lease = await queue.claim(lanes, name, lease_s=600, block_s=5)
            if lease is not None:
                await queue.complete(lease, result_stream="rollouts", result=result)
            answer = await queue.claim("rollouts", name, lease_s=600, block_s=5)
            if answer is not None:
                await queue.complete(answer)
            done += 1
        await redis.aclose()
        return done

    async def all_clients() -> int:
        until = time.monotonic() + CYCLES_S
        return sum(await asyncio.gather(*(client(i, until) for i in range(clients))))

    return asyncio.run(all_clients())


async def lease_many(redis_url: str, run: str, lanes: tuple[str, ...]) -> None:
    """Leases that every claim has to look through."""
    redis = connect(redis_url)
    queue = RedisQueue(redis, RunKeys(run))
    for number in range(NUM_LEASED):
        await queue.enqueue(lanes[number % len(lanes)], f"leased-{number}", b"")
        await queue.claim(lanes, "holder", lease_s=600, block_s=5)
    await redis.aclose()


async def claim_us(redis_url: str, run: str, lanes: tuple[str, ...]) -> float:
    """What a claim costs Redis itself, in microseconds of its one thread."""
    redis = connect(redis_url)
    queue = RedisQueue(redis, RunKeys(run))
    for number in range(300):
        await queue.enqueue(lanes[number % len(lanes)], f"timed-{number}", b"")
    await redis.config_resetstat()
    for _ in range(300):
        lease = await queue.claim(lanes, "timed", lease_s=600, block_s=0)
        assert lease is not None
    stats = await redis.info("commandstats")
    await redis.aclose()
    return float(stats["cmdstat_evalsha"]["usec_per_call"])


def measure_queue(redis_url: str, pool: ProcessPoolExecutor) -> float:
    """Print the table; the most cycles a second over the lanes."""
    print(
        f"\n{'clients':>8} {'cycles/s, 1 stream':>19} {f'cycles/s, {len(PROMPT_LANES)} lanes':>19}"
    )
    best = 0.0
    for clients in NUM_CLIENTS:
        rates = []
        for lanes in (PROMPT_LANES[:1], PROMPT_LANES):
            run = f"queue-{clients}-{len(lanes)}"
            asyncio.run(lease_many(redis_url, run, lanes))
            shares = [len(range(i, clients, CLIENT_PROCESSES)) for i in range(CLIENT_PROCESSES)]
            jobs = [
                pool.submit(cycle, redis_url, run, lanes, n, i) for i, n in enumerate(shares) if n
            ]
            rates.append(sum(job.result() for job in jobs) / CYCLES_S)
        print(f"{clients:8} {rates[0]:19.0f} {rates[1]:19.0f}")
        best = max(best, rates[1])
    return best


def main() -> None:
    """Print both tables."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"python benchmarks/many_servers.py   # {platform.machine()}, {os.cpu_count()} cores")
    with redis_server() as redis_url:
        alone = measure_servers(redis_url)
    with redis_server() as redis_url, ProcessPoolExecutor(CLIENT_PROCESSES, SPAWN) as pool:
        list(pool.map(time.sleep, [0.5] * CLIENT_PROCESSES))  # imports are done
        for lanes in (PROMPT_LANES[:1], PROMPT_LANES):
            run = f"claims-{len(lanes)}"
            asyncio.run(lease_many(redis_url, run, lanes))
            cost = asyncio.run(claim_us(redis_url, run, lanes))
            print(
                f"claim among {NUM_LEASED} leases over {len(lanes)} streams: {cost:.0f} µs of Redis"
            )
        best = measure_queue(redis_url, pool)
    print(
        f"\none server samples {alone:.2f} groups/s here, so Redis and its clients on these cores "
        f"saturate at {best / alone:.0f} such servers"
    )


if __name__ == "__main__":
    main()
