"""Workers and Redis die by SIGKILL while items flow; at the end every item has ended, once.

In the manner of Jepsen: real processes, a real server, a checker of the final history. The second
test lets the checker find something: the same flow over plain, unguarded calls has duplicates.
"""

import asyncio
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from services.errors import UnavailableError
from services.host.ports import free_port
from services.redis.client import connect, redis_errors
from services.redis.keys import PROMPT_LANES, RunKeys
from services.redis.queue import Lease, RedisQueue

FORK = multiprocessing.get_context("fork")
KEYS = RunKeys("chaos")
LEASE_S = 0.4
KILL_S = 8.0
MAX_EXPIRIES = round(KILL_S / LEASE_S) + 5
"""More than expire of one item while workers are killed: nothing is given up by chance."""
NUM_WORKERS = 4
POISON = {"item-7", "item-100"}
ITEMS = [f"item-{number}" for number in range(300)]


def lane_of(item: str) -> str:
    """Its own for each item, whenever it is asked."""
    return PROMPT_LANES[int(item.rpartition("-")[2]) % len(PROMPT_LANES)]


class NaiveQueue(RedisQueue):
    """Finishing as three separate calls, each fine in itself."""

    async def complete(
        self, lease: Lease, *, result_stream: str | None = None, result: bytes = b""
    ) -> bool:
        fields: dict[Any, Any] = {"id": lease.work_id, "body": result}
        with redis_errors(self._redis):
            await self._redis.xadd(KEYS.stream("rollouts"), fields)
            await self._redis.xack(KEYS.stream(lease.stream), "rollout", lease.entry_id)
            await self._redis.xdel(KEYS.stream(lease.stream), lease.entry_id)
        return True


async def work(queue: RedisQueue, consumer: str, rng: random.Random) -> None:
    lanes = rng.sample(PROMPT_LANES, len(PROMPT_LANES))
    lease = await queue.claim(lanes, consumer, lease_s=LEASE_S, block_s=0.1)
    if lease is None:
        return
    if lease.work_id in POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    if rng.random() < 0.05:
        await queue.fail(lease, "bad luck", max_deliveries=20)
        return
    outlives_its_lease = rng.random() < 0.05
    await asyncio.sleep(LEASE_S * 1.6 if outlives_its_lease else rng.uniform(0.001, 0.01))
    await queue.complete(lease, result_stream="rollouts", result=lease.body)


def worker(url: str, number: int, kind: type[RedisQueue]) -> None:
    async def forever() -> None:
        queue = kind(connect(url), KEYS, max_expiries=MAX_EXPIRIES)
        rng = random.Random(os.getpid())
        while True:
            try:
                await work(queue, f"w{number}-{os.getpid()}", rng)
            except UnavailableError:
                await asyncio.sleep(0.05)

    asyncio.run(forever())


@dataclass
class Chaos:
    """A server, its workers, and who is to die next."""

    start: Callable[[], "subprocess.Popen[bytes]"]
    url: str
    kind: type[RedisQueue]
    kills: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.rng = random.Random(1)
        self.server = self.start()
        self.workers = [self.spawn(number) for number in range(NUM_WORKERS)]

    def spawn(self, number: int) -> Any:
        process = FORK.Process(target=worker, args=(self.url, number, self.kind), daemon=True)
        process.start()
        return process

    def respawn_dead(self) -> None:
        for number, process in enumerate(self.workers):
            if not process.is_alive():
                self.workers[number] = self.spawn(number)

    def kill_worker(self) -> None:
        self.rng.choice(self.workers).kill()
        self.kills["worker"] += 1

    def kill_server(self) -> None:
        self.server.kill()
        self.server.wait()
        self.server = self.start()
        self.kills["server"] += 1

    def stop_workers(self) -> None:
        for process in self.workers:
            process.kill()
            process.join()

    def close(self) -> None:
        self.stop_workers()
        self.server.kill()
        self.server.wait()


async def enqueue_all(queue: RedisQueue, items: list[str]) -> None:
    for item in items:
        while True:
            try:
                await queue.enqueue(lane_of(item), item, b"x" * 200)
                break
            except UnavailableError:
                await asyncio.sleep(0.05)


async def outcome(queue: RedisQueue, url: str) -> tuple[int, Counter[str], Counter[str]]:
    """Items still on the stream; results and dead letters by work id.

    The streams are read first: once they are empty, nothing ends any more.
    """
    left = await queue.length(PROMPT_LANES)
    client = connect(url)
    entries: Any = await client.xrange(KEYS.stream("rollouts"))
    results = Counter(fields[b"id"].decode() for _, fields in entries)
    dead = Counter(letter.work_id for letter in await queue.dead_letters())
    await client.aclose()
    return left, results, dead


def run_until_empty(chaos: Chaos, *, kill_s: float, limit_s: float) -> tuple[Any, Any]:
    """Feed the items, killing for `kill_s` seconds; then derive all of them again and wait."""

    def call(action: Callable[[RedisQueue], Any]) -> Any:
        async def inside() -> Any:
            client = connect(chaos.url)
            try:
                return await action(RedisQueue(client, KEYS))
            finally:
                await client.aclose()

        return asyncio.run(inside())

    started = time.monotonic()
    next_server_kill = started + 2.0
    fed = 0
    while time.monotonic() - started < kill_s:
        batch = ITEMS[fed : fed + 12]
        call(partial(enqueue_all, items=batch))
        fed += len(batch)
        chaos.kill_worker()
        chaos.respawn_dead()
        if time.monotonic() > next_server_kill:
            chaos.kill_server()
            next_server_kill = time.monotonic() + 2.0
        time.sleep(0.3)
    call(lambda queue: enqueue_all(queue, ITEMS))
    while time.monotonic() - started < limit_s:
        chaos.respawn_dead()
        left, results, dead = call(lambda queue: outcome(queue, chaos.url))
        if left == 0:
            return results, dead
        time.sleep(0.2)
    raise AssertionError(f"{left} items never ended")


def make_chaos(start_redis: Any, folder: Path, kind: type[RedisQueue]) -> Chaos:
    port = free_port()
    return Chaos(lambda: start_redis(folder, port), f"redis://127.0.0.1:{port}/0", kind)


def test_nothing_is_lost_and_nothing_is_done_twice(start_redis: Any, tmp_path: Path) -> None:
    chaos = make_chaos(start_redis, tmp_path, RedisQueue)
    try:
        results, dead = run_until_empty(chaos, kill_s=KILL_S, limit_s=120)
    finally:
        chaos.close()
    assert chaos.kills["server"] >= 2
    assert chaos.kills["worker"] >= 10
    assert max((results + dead).values()) == 1, "something ended twice"
    assert set(results) | set(dead) == set(ITEMS), "something was lost"
    assert set(dead) == POISON, "something that kills nobody was given up"
    assert set(results) == set(ITEMS) - POISON


def test_the_checker_finds_what_unguarded_calls_do(start_redis: Any, tmp_path: Path) -> None:
    chaos = make_chaos(start_redis, tmp_path, NaiveQueue)
    try:
        results, dead = run_until_empty(chaos, kill_s=0, limit_s=120)
    finally:
        chaos.close()
    assert max((results + dead).values()) > 1
