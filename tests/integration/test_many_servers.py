"""Several rollout servers on one queue: who samples what, and what one that goes leaves behind."""

import asyncio
import hashlib
import itertools
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from cli.views.status import RunStatus
from rollout_service.fake.engine import FakeEngine
from rollout_service.queue.lanes import own_lanes
from rollout_service.queue.membership import Membership
from rollout_service.queue.worker import QueueWorker
from rollout_service.server import RolloutServer
from services.errors import SettingsError
from services.host.ports import free_port
from services.images import ImageStore
from services.redis.client import connect
from services.redis.keys import PROMPT_LANES, RunKeys, prompt_stream
from services.redis.queue import RedisQueue
from services.redis.registry import Registry
from services.schemas.common import ChatMessage, ImagePart, Sampling, TextPart
from services.schemas.prompts import PromptGroup
from services.schemas.rollouts import RolloutGroup
from services.schemas.weights import ServerRecord
from services.settings import Settings, dump_settings
from services.telemetry import Tracing
from tests.processes import ROOT, sgg_process, wait_for, wait_ready

MESSAGES = [ChatMessage(role="user", content=[ImagePart(), TextPart(text="What is there?")])]
NEVER_S = 3600.0
"""A lease that no test waits for."""
ELSEWHERE = "http://127.0.0.1:1"
_NUMBERS = itertools.count()


def settings_of(folder: Path, keys: RunKeys, redis_url: str, **rollout: Any) -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": keys.prefix.split(":")[1], "root": str(folder)},
            "model": {"path": "fake"},
            "data": {"train": "unused"},
            "redis": {"url": redis_url, "lease_s": NEVER_S},
            "rollout": {"engine": "fake", "url": f"http://127.0.0.1:{free_port()}", **rollout},
        }
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while True:
            if condition():
                return
            await asyncio.sleep(0.02)


def image_in(lanes: list[str]) -> bytes:
    """An image of one of these lanes."""
    digits = {lane[-1] for lane in lanes}
    for number in itertools.count():
        data = f"image {number}".encode()
        if hashlib.sha256(data).hexdigest()[0] in digits:
            return data
    raise AssertionError


class Member:
    """A server in this process, with connections of its own."""

    def __init__(self, settings: Settings, *gpus: str) -> None:
        url = f"http://member-{next(_NUMBERS)}:8200"
        rollout = settings.rollout.model_copy(update={"url": url})
        settings = settings.model_copy(update={"rollout": rollout})
        self.redis: Redis = connect(settings.redis)
        keys = RunKeys(settings.run.name)
        self.engine = FakeEngine(tokens_per_s=100_000, max_model_len=4096, gpus=gpus)
        self.server = RolloutServer(
            settings, lambda: self.engine, CollectorRegistry(), Tracing("test", None)
        )
        registry = Registry(self.redis, keys)
        images = ImageStore(settings.run.files.images, self.redis, keys)
        self.membership = Membership(self.server, registry, images)
        self.lanes = self.membership.lanes
        queue = RedisQueue(self.redis, keys)
        self.worker = QueueWorker(self.server, queue, registry, images, self.lanes, settings)

        self.may_work = asyncio.Event()

    async def run(self) -> None:
        await self.server.prepare()
        async with self.membership.joined():
            await self.server.start()
            await self.may_work.wait()
            await self.worker.run()


class Fleet:
    """Members on one queue, and the trainer's end of it."""

    def __init__(self, settings: Settings, keys: RunKeys, stack: AsyncExitStack) -> None:
        self.settings = settings
        self._keys = keys
        self.redis = connect(settings.redis)
        stack.push_async_callback(self.redis.aclose)
        self.queue: RedisQueue = RedisQueue(self.redis, keys)
        self.registry = Registry(self.redis, keys)
        self.images = ImageStore(settings.run.files.images)
        self._stack = stack
        self._names = itertools.count()

    async def only_record(self) -> ServerRecord:
        """The only server's, once it has beaten: it may be ready before."""
        async with asyncio.timeout(30):
            while True:
                for record in await self.registry.servers():
                    return record
                await asyncio.sleep(0.02)

    def join(self, *gpus: str) -> Member:
        member = Member(self.settings, *gpus)
        running = asyncio.create_task(member.run())

        async def stop() -> None:
            member.server.give_up()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await member.server.stop()
            await member.redis.aclose()

        self._stack.push_async_callback(stop)
        return member

    async def ask(self, image: bytes) -> PromptGroup:
        prompt = PromptGroup(
            group_id=f"g{next(self._names)}",
            incarnation=1,
            epoch=0,
            index=0,
            messages=MESSAGES,
            images=[self.images.put(image)],
            sampling=Sampling(n=2),
        )
        body = prompt.model_dump_json().encode()
        await self.queue.enqueue(prompt_stream(prompt), prompt.work_id, body)
        return prompt

    async def entries(self, prompts: list[PromptGroup]) -> list[Any]:
        """Where on their lanes they are: one that was handed back is another entry."""
        keys = [self._keys.seen(prompt_stream(p), p.work_id) for p in prompts]
        return list(await self.redis.mget(keys))

    async def answers(self, count: int) -> list[RolloutGroup]:
        groups: list[RolloutGroup] = []
        async with asyncio.timeout(60):
            while len(groups) < count:
                lease = await self.queue.claim("rollouts", "trainer", lease_s=60, block_s=1)
                if lease is not None:
                    await self.queue.complete(lease)
                    groups.append(RolloutGroup.model_validate_json(lease.body))
        return groups


@pytest.fixture
async def fleet(
    tmp_path: Path, redis_url: str, run_keys: RunKeys, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Fleet]:
    monkeypatch.setattr("rollout_service.queue.membership.HEARTBEAT_TTL_S", 0.6)
    settings = settings_of(tmp_path, run_keys, redis_url, groups_in_flight=2)
    async with AsyncExitStack() as stack:
        yield Fleet(settings, run_keys, stack)


def agreed(members: list[Member]) -> bool:
    """Whether all lanes are divided among these, without rest."""
    return sorted(lane for m in members for lane in m.lanes.own) == sorted(PROMPT_LANES)


async def test_an_image_stays_with_its_server_until_another_is_idle(fleet: Fleet) -> None:
    members = [fleet.join() for _ in range(3)]
    await until(lambda: agreed(members))
    owner: dict[str, str] = {}
    for member in members:
        await member.engine.pause()
        image = image_in(member.lanes.own)
        for _ in range(4):
            owner[(await fleet.ask(image)).work_id] = member.server.server_id
    for member in members:
        member.may_work.set()
    await until(lambda: all(m.server.record().groups_in_flight == 2 for m in members))
    first, *others = members
    await first.engine.resume()
    groups = await fleet.answers(8)  # two are held by each of the others
    assert {group.server_id for group in groups} == {first.server.server_id}
    theirs = Counter(owner[group.work_id] for group in groups)
    assert theirs == {first.server.server_id: 4} | {m.server.server_id: 2 for m in others}
    for member in others:
        await member.engine.resume()
    for group in await fleet.answers(4):
        assert group.server_id == owner[group.work_id]


async def test_lanes_of_a_dead_server_go_to_the_others(fleet: Fleet) -> None:
    member = fleet.join()
    await until(lambda: member.server.state == "ready")
    dead = member.server.record().model_copy(update={"server_id": "dead-1", "url": ELSEWHERE})
    await fleet.registry.heartbeat(dead, ttl_s=1.0)
    await until(lambda: len(member.lanes.own) < len(PROMPT_LANES))
    await until(lambda: len(member.lanes.own) == len(PROMPT_LANES))


@pytest.mark.parametrize("state", ["draining", "quarantined", "starting"])
async def test_a_server_that_takes_no_work_has_no_lanes(fleet: Fleet, state: str) -> None:
    member = fleet.join()
    await until(lambda: member.server.state == "ready")
    for server_id, its_state in (("idler", state), ("worker", "ready")):
        record = member.server.record().model_copy(
            update={"server_id": server_id, "url": ELSEWHERE, "state": its_state}
        )
        await fleet.registry.heartbeat(record, ttl_s=60)
    expected = own_lanes(member.server.server_id, ["worker"])
    await until(lambda: member.lanes.own == expected)


async def test_a_server_waits_for_the_gpu_of_a_killed_one(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout_service.queue.membership.GPU_TTL_S", 1.0)
    assert await fleet.registry.claim_gpus(["GPU-7"], "killed", ttl_s=0.8) == "killed"
    member = fleet.join("GPU-7")
    await until(lambda: member.server.state == "ready")
    assert await fleet.registry.claim_gpus(["GPU-7"], "another") == member.server.server_id
    assert (await fleet.only_record()).gpu == "GPU-7"


async def test_a_server_takes_all_of_its_gpus_or_none(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout_service.queue.membership.GPU_TTL_S", 0.2)
    first = fleet.join("GPU-1", "GPU-2")
    await until(lambda: first.server.state == "ready")
    record = await fleet.only_record()
    assert (record.gpu, record.gpus) == ("GPU-1", ["GPU-1", "GPU-2"])
    second = Member(fleet.settings, "GPU-3", "GPU-2")
    await second.server.prepare()
    with pytest.raises(SettingsError, match="one of the GPUs GPU-3, GPU-2 is taken by the rollout"):
        async with second.membership.joined():
            pass
    assert await fleet.registry.claim_gpus(["GPU-3"], "another") == "another"
    await second.redis.aclose()


async def test_a_gpu_is_held_by_the_beat_and_given_back(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout_service.queue.membership.GPU_TTL_S", 1.0)
    first, second = Member(fleet.settings, "GPU-7"), Member(fleet.settings, "GPU-7")
    await asyncio.gather(first.server.prepare(), second.server.prepare())
    async with first.membership.joined():
        with pytest.raises(SettingsError, match="CUDA_VISIBLE_DEVICES") as caught:
            async with second.membership.joined():
                pass
        assert first.server.server_id in caught.value.message
    async with second.membership.joined():  # at once
        assert await fleet.registry.claim_gpus(["GPU-7"], "a") == second.server.server_id
    for member in (first, second):
        await member.redis.aclose()


async def test_a_gpu_that_went_to_another_is_said_and_left_to_it(fleet: Fleet) -> None:
    member = fleet.join("GPU-7")
    await until(lambda: member.server.state == "ready")
    await fleet.registry.release_gpus(["GPU-7"], member.server.server_id)  # as an outage would
    await fleet.registry.claim_gpus(["GPU-7"], "thief")
    await until(lambda: "thief" in (member.server.last_error or ""))
    await fleet.registry.release_gpus(["GPU-7"], member.server.server_id)
    assert await fleet.registry.claim_gpus(["GPU-7"], "another") == "thief"


# Processes of their own, as a user starts them.


class Served:
    """`sgg-rl serve rollout` with the fake engine."""

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        self.url = settings.rollout.url
        name = self.url.rpartition(":")[2]
        folder = settings.run.root
        self.log, self.config = folder / f"{name}.log", folder / f"{name}.toml"
        self.config.write_text(dump_settings(settings))
        self.process = stack.enter_context(
            sgg_process(self.log, "serve", "rollout", "--config", str(self.config))
        )
        wait_ready(self.url, self.process, self.log)

    def in_flight(self) -> int:
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        (value,) = [v for v in text.splitlines() if v.startswith("rollout_groups_in_flight ")]
        return int(float(value.split()[1]))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def test_sigterm_under_load_hands_everything_over(
    fleet: Fleet, tmp_path: Path, redis_url: str, run_keys: RunKeys, stack: ExitStack
) -> None:
    """No lease of this test ever expires: what is not handed back is lost to it."""
    slow = settings_of(tmp_path, run_keys, redis_url, fake_tokens_per_s=10)
    stopped = Served(slow, stack)
    asked = {(await fleet.ask(b"image %d" % i)).work_id for i in range(8)}
    await until(lambda: stopped.in_flight() == 8)
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}]}
        waiting = asyncio.create_task(http.post(f"{stopped.url}/v1/rollouts", json=body))
        await until(lambda: stopped.in_flight() == 9)
        stopped.process.send_signal(signal.SIGTERM)
        await until(lambda: "draining 9 groups" in stopped.log.read_text())
        late = [await fleet.ask(b"late %d" % i) for i in range(3)]
        entries = await fleet.entries(late)
        stopped.process.send_signal(signal.SIGTERM)  # who cannot wait says it twice
        answer = await waiting
    assert (answer.status_code, answer.json()["retryable"]) == (503, True)
    assert await asyncio.to_thread(stopped.process.wait, 20) == 0, stopped.log.read_text()
    assert await fleet.registry.servers() == []
    assert await fleet.entries(late) == entries, "never claimed, so never handed back"
    assert not [key async for key in fleet.redis.scan_iter(f"{run_keys.prefix}failures:*")]
    taker = fleet.join()
    taker.may_work.set()
    groups = await fleet.answers(11)
    assert {group.work_id for group in groups} == asked | {prompt.work_id for prompt in late}
    assert {group.server_id for group in groups} == {taker.server.server_id}


async def test_status_of_a_fleet(
    fleet: Fleet, tmp_path: Path, redis_url: str, run_keys: RunKeys, stack: ExitStack
) -> None:
    served = Served(settings_of(tmp_path, run_keys, redis_url, fake_tokens_per_s=10), stack)
    for i in range(9):
        await fleet.ask(b"image %d" % i)
    await until(lambda: served.in_flight() == 8)

    def status() -> RunStatus:
        command = [sys.executable, "-m", "cli.main", "status", "--json", "-c", str(served.config)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return RunStatus.model_validate_json(done.stdout)

    found: list[RunStatus] = []
    wait_for("a beat", lambda: found.append(status()) or found[-1].servers[0].groups_in_flight == 8)  # type: ignore[func-returns-value]
    (server,) = found[-1].servers
    assert (server.url, server.state, server.groups_limit) == (served.url, "ready", 8)
    assert found[-1].queues == {"prompts": 9, "rollouts": 0, "dead": 0}


SERVE = """
import sys
from pathlib import Path
import rollout_service.queue.membership as membership
from rollout_service.http.app import RolloutProcess
from rollout_service.fake.engine import FakeEngine
from services.http import app as service
from services.settings import load_settings

membership.GPU_TTL_S = 1.0
settings = load_settings(Path(sys.argv[1]))
engine = FakeEngine(tokens_per_s=1000, max_model_len=4096, gpus=("GPU-7",))
process = RolloutProcess(settings, lambda: engine)
service.serve(process.app, settings.rollout.url)
if process.failure:
    raise process.failure
"""


async def test_a_process_on_a_taken_gpu_ends_and_says_so(
    fleet: Fleet, tmp_path: Path, redis_url: str, run_keys: RunKeys
) -> None:
    first = fleet.join("GPU-7")
    await until(lambda: first.server.state == "ready")
    config = tmp_path / "second.toml"
    config.write_text(dump_settings(settings_of(tmp_path, run_keys, redis_url)))
    command = [sys.executable, "-c", SERVE, str(config)]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert f"taken by the rollout server {first.server.server_id}" in done.stderr
    assert "CUDA_VISIBLE_DEVICES" in done.stderr
    assert len(await fleet.registry.servers(starting=True)) == 1
