"""The queue worker with the fake engine: groups end once, whatever fails."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rollout_service.engine import EngineResult, GroupRequest
from rollout_service.fake.engine import FakeEngine
from rollout_service.queue.membership import Membership
from rollout_service.queue.worker import QueueWorker
from rollout_service.server import RolloutServer
from services.errors import EngineError, InvalidInputError, SggError, UnavailableError
from services.images import ImageStore
from services.redis.keys import PROMPT_LANES, RunKeys, prompt_stream
from services.redis.queue import Lease
from services.redis.registry import Registry
from services.schemas.common import ChatMessage, ImagePart, ImageRef, Sampling, TextPart
from services.schemas.prompts import PromptGroup
from services.schemas.rollouts import RolloutGroup
from services.schemas.weights import PolicyRecord, ServerRecord, WeightManifest
from services.settings import Settings
from services.telemetry import Tracing
from tests.memory_queue import MemoryQueue
from tests.shm_versions import ShmRun, ShmVersion
from weight_sync.engine import Staged

IMAGE = b"not decoded by the fake engine"


class MemoryRegistry(Registry):
    """What the worker needs of a registry, in this process."""

    def __init__(self) -> None:
        self.published: ShmVersion | None = None
        self.records: dict[str, ServerRecord] = {}
        self.fault: Exception | None = None

    async def set_aside(self) -> None:
        """Nobody else has keys here."""

    async def heartbeat(self, record: ServerRecord, *, ttl_s: float = 15.0) -> None:
        if self.fault is not None:
            raise self.fault
        self.records[record.server_id] = record

    register = heartbeat

    async def servers(self, *, starting: bool = False) -> list[ServerRecord]:
        return list(self.records.values())

    async def unregister(self, server_id: str) -> None:
        self.records.pop(server_id, None)

    async def policy(self) -> tuple[PolicyRecord, WeightManifest] | None:
        return (self.published.record, self.published.manifest) if self.published else None


class AwayQueue(MemoryQueue):
    """A queue that can be away."""

    away = False

    async def claim(self, *args: Any, **kwargs: Any) -> Lease | None:
        return await super().claim(*args, **kwargs) if not self.away else self._refuse()

    async def complete(self, *args: Any, **kwargs: Any) -> bool:
        return await super().complete(*args, **kwargs) if not self.away else self._refuse()

    async def renew(self, *args: Any, **kwargs: Any) -> bool:
        return await super().renew(*args, **kwargs) if not self.away else self._refuse()

    def _refuse(self) -> Any:
        raise UnavailableError("Redis does not answer")


class TroubledEngine(FakeEngine):
    """Fails in the ways that it is told."""

    errors: list[Exception]
    dead = False
    num_asked = 0

    async def sample(self, request: GroupRequest) -> EngineResult:
        self.num_asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return await super().sample(request)

    async def load_weights(self, weights: Staged, manifest: WeightManifest) -> None:
        if self.dead:
            raise EngineError("no memory")
        await super().load_weights(weights, manifest)

    async def check_health(self) -> None:
        if self.dead:
            raise EngineError("the engine process is gone")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it; the test fails when it does not come."""
    async with asyncio.timeout(30):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


class Scene:
    """A worker with everything that it works with."""

    def __init__(self, run: str, folder: Path, **options: Any) -> None:
        rate = options.pop("tokens_per_s", 50_000)
        self.settings = Settings.model_validate(
            {
                "run": {"name": run, "root": str(folder)},
                "model": {"path": "fake"},
                "data": {"train": "unused"},
                "rollout": {"groups_in_flight": options.pop("groups_in_flight", 4)},
                "redis": {"lease_s": options.pop("lease_s", 30.0), "max_deliveries": 3},
            }
        )
        self.engine = TroubledEngine(tokens_per_s=rate, max_model_len=4096)
        self.engine.errors = []
        self.queue = AwayQueue()
        self.registry = MemoryRegistry()
        self.images = ImageStore(folder / "images")
        self.server = RolloutServer(
            self.settings, lambda: self.engine, CollectorRegistry(), Tracing("test", None)
        )
        self.membership = Membership(self.server, self.registry, self.images)
        self.worker = QueueWorker(
            self.server,
            self.queue,
            self.registry,
            self.images,
            self.membership.lanes,
            self.settings,
        )
        self.running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.server.start()
        self.running = asyncio.create_task(self.work())

    async def work(self) -> None:
        async with self.membership.joined():
            await self.worker.run()

    async def stop(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)
        await self.server.stop()

    async def ask(self, name: str, **changes: Any) -> PromptGroup:
        prompt = PromptGroup.model_validate(
            {
                "group_id": name,
                "incarnation": 1,
                "epoch": 0,
                "index": 0,
                "messages": [
                    ChatMessage(role="user", content=[ImagePart(), TextPart(text="What?")])
                ],
                "images": [self.images.put(IMAGE)],
                "sampling": Sampling(n=2),
            }
            | changes
        )
        body = prompt.model_dump_json().encode()
        await self.queue.enqueue(prompt_stream(prompt), prompt.work_id, body)
        return prompt

    async def answer(self) -> RolloutGroup:
        lease = await self.queue.claim("rollouts", "trainer", lease_s=60, block_s=20)
        assert lease is not None, "no group came"
        await self.queue.complete(lease)
        return RolloutGroup.model_validate_json(lease.body)

    async def dead(self) -> list[str]:
        await until(lambda: bool(self.queue._dead))
        return (await self.queue.dead_letters())[0].failures


@pytest.fixture
async def scene(shm_run: ShmRun, tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(shm_run.name, tmp_path)
    await scene.start()
    yield scene
    await scene.stop()


async def test_groups_are_sampled_and_completed(scene: Scene) -> None:
    asked = {(await scene.ask(f"g{i}")).work_id for i in range(10)}
    groups = [await scene.answer() for _ in range(10)]
    assert {group.work_id for group in groups} == asked
    for group in groups:
        assert group.server_id == scene.server.server_id
        assert len(group.completions) == 2
        assert len(group.completions[0].token_ids) == len(group.completions[0].rollout_logprobs)
    assert await scene.queue.length(PROMPT_LANES) == 0


async def test_the_server_is_announced_and_taken_out(scene: Scene) -> None:
    await scene.ask("g")
    await scene.answer()
    assert scene.registry.records[scene.server.server_id].state == "ready"
    await scene.stop()
    assert scene.registry.records == {}


async def test_a_server_that_cannot_beat_says_so_samples_nothing_and_ends(
    run_keys: RunKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: with no record it is gone for all others."""
    scene = Scene(run_keys.prefix.split(":")[1], tmp_path)
    await scene.server.start()
    await scene.worker._catch_up()
    await scene.ask("g")
    monkeypatch.setattr("rollout_service.queue.membership.HEARTBEAT_TTL_S", 0.06)
    scene.registry.fault = ValueError("no such record")
    async with scene.membership.joined() as beating:
        await until(lambda: scene.server.unheard is not None)
        assert scene.server.unheard == "cannot beat: no such record"
        assert await scene.worker._claim() is None
        scene.registry.fault = None
        await until(lambda: scene.server.unheard is None)
        assert await scene.worker._claim() is not None
        scene.registry.fault = UnavailableError("Redis is away")
        await until(lambda: scene.server.unheard == "Redis is away")
        monkeypatch.setattr("rollout_service.queue.membership._LONGEST_FAULT_S", 0.0)
        await asyncio.sleep(0.1)
        assert not beating.done(), "Redis may come back"
        scene.registry.fault = ValueError("no such record")
        await asyncio.wait({beating}, timeout=30)
        with pytest.raises(SggError, match="cannot beat: no such record"):
            beating.result()
    await scene.server.stop()


async def test_an_inference_server_without_redis_is_ready(scene: Scene) -> None:
    scene.registry.fault = UnavailableError("Redis is away")
    await scene.stop()
    async with scene.membership.joined():
        await until(lambda: scene.server.last_error == "Redis is away")
        assert scene.server.unheard is None


async def test_a_bad_message_is_dead_after_two_attempts(scene: Scene) -> None:
    await scene.queue.enqueue(PROMPT_LANES[0], "broken", b'{"group_id": 3}')
    failures = await scene.dead()
    assert len(failures) == 2
    assert all(failure.startswith("data: not a PromptGroup") for failure in failures)
    await scene.ask("good")
    assert (await scene.answer()).group_id == "good"


async def test_budgets_are_counted_apart(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout_service.queue.worker._SHORTEST_PAUSE_S", 0.01)
    scene.engine.errors = [EngineError("1"), InvalidInputError("2"), EngineError("3")]
    await scene.ask("survives")
    assert (await scene.answer()).group_id == "survives"
    scene.engine.errors = [EngineError("1"), EngineError("2"), InvalidInputError("3")]
    scene.engine.errors += [EngineError("4")]
    await scene.ask("dies of the third failure of the server")
    failures = await scene.dead()
    assert [failure[-1] for failure in failures] == ["1", "2", "3", "4"]


async def test_an_image_that_is_nowhere_is_not_the_data_s_fault_at_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout_service.queue.worker._SHORTEST_PAUSE_S", 0.01)
    monkeypatch.setattr("rollout_service.queue.worker._IMAGE_WAIT_S", 0.0)
    await scene.ask("g", images=[{"sha256": "a" * 64, "num_bytes": 9}])
    failures = await scene.dead()
    assert len(failures) == 3
    assert failures[0].startswith("NotFoundError on")


async def test_nothing_is_sampled_before_the_version_that_is_asked_for(
    scene: Scene, shm_run: ShmRun
) -> None:
    await scene.ask("g", min_policy_version=4)
    await asyncio.sleep(0.5)
    assert await scene.queue.length("rollouts") == 0
    scene.registry.published = shm_run.write(4)
    group = await scene.answer()
    assert {s.policy_version for c in group.completions for s in c.policy_versions} == {4}


async def test_waiting_for_a_version_is_no_failure_of_the_group(
    shm_run: ShmRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes back to the queue more often than a failure may happen, and is sampled in the end."""
    monkeypatch.setattr("rollout_service.queue.worker._SHORTEST_PAUSE_S", 0.01)
    monkeypatch.setattr("rollout_service.queue.worker._LONGEST_PAUSE_S", 0.01)
    scene = Scene(shm_run.name, tmp_path, lease_s=0.2)
    await scene.start()
    try:
        await scene.ask("g", min_policy_version=4)
        await until(lambda: caplog.text.count("goes back to the queue: waited 0.2 s") > 3)
        scene.registry.published = shm_run.write(4)
        group = await scene.answer()
        assert group.completions[0].policy_versions[0].policy_version == 4
        assert await scene.queue.dead_letters() == []
    finally:
        await scene.stop()


async def test_a_later_trainer_is_not_answered_with_weights_of_an_earlier(
    scene: Scene, shm_run: ShmRun
) -> None:
    scene.registry.published = shm_run.write(9, incarnation=1)
    await scene.ask("first", min_policy_version=9)
    await scene.answer()
    await scene.ask("second", incarnation=2, min_policy_version=3)
    await asyncio.sleep(0.3)
    assert await scene.queue.length("rollouts") == 0
    scene.registry.published = shm_run.write(3, incarnation=2)
    group = await scene.answer()
    assert group.completions[0].policy_versions[0].policy_version == 3


@pytest.mark.parametrize("min_version", [0, 7])
async def test_what_an_earlier_trainer_asked_for_is_ended_unsampled(
    scene: Scene, shm_run: ShmRun, min_version: int
) -> None:
    """Such as by one that was taken for dead and woke up: its images may be gone by then."""
    scene.registry.published = shm_run.write(3, incarnation=2)
    await until(lambda: scene.server.serving.incarnation == 2)
    prompt = await scene.ask("g", min_policy_version=min_version)
    await until(lambda: prompt.work_id in scene.queue._streams[prompt_stream(prompt)].done)
    assert scene.engine.num_asked == 0
    assert await scene.queue.length("rollouts") == 0


async def test_a_late_joiner_catches_up_before_it_claims(shm_run: ShmRun, tmp_path: Path) -> None:
    scene = Scene(shm_run.name, tmp_path)
    version = shm_run.write(6)
    content = version.file.read_bytes()
    version.file.unlink()
    scene.registry.published = version
    await scene.ask("g")
    await scene.start()
    try:
        await asyncio.sleep(0.5)
        assert await scene.queue.claim(PROMPT_LANES, "other", lease_s=60, block_s=0) is not None
        version.file.write_bytes(content)
        await scene.ask("h")
        group = await scene.answer()
        assert (group.group_id, group.completions[0].policy_versions[0].policy_version) == ("h", 6)
    finally:
        await scene.stop()


async def test_a_server_that_fell_behind_takes_no_more_work(
    shm_run: ShmRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout_service.queue.worker._CLAIM_BLOCK_S", 0.05)
    scene = Scene(shm_run.name, tmp_path)
    await scene.start()
    await scene.ask("before")
    await scene.answer()
    version = shm_run.write(6)
    content = version.file.read_bytes()
    version.file.unlink()  # it cannot catch up until the trainer brings the weights
    scene.registry.published = version
    await scene.ask("claimed", min_policy_version=6)
    await until(lambda: "catch up" in (scene.server.last_error or ""))
    await asyncio.sleep(0.3)  # a claim that had begun before is over
    await scene.ask("left to others")
    await asyncio.sleep(0.3)
    lease = await scene.queue.claim(PROMPT_LANES, "other", lease_s=60, block_s=0)
    assert lease is not None
    assert lease.work_id.startswith("left to others")
    await scene.queue.release(lease)
    version.file.write_bytes(content)
    groups = [await scene.answer() for _ in range(2)]
    assert {group.completions[0].policy_versions[0].policy_version for group in groups} == {6}
    await scene.stop()


async def test_an_image_that_comes_late_is_waited_for(scene: Scene) -> None:
    ref = ImageRef(sha256=hashlib.sha256(b"late").hexdigest(), num_bytes=4)
    await scene.ask("g", images=[ref])
    await until(lambda: bool(scene.worker._groups))
    scene.images.put(b"late")
    assert (await scene.answer()).group_id == "g"


async def test_a_group_that_comes_too_late_to_be_sampled_is_no_failure(scene: Scene) -> None:
    ref = ImageRef(sha256=hashlib.sha256(b"late").hexdigest(), num_bytes=4)
    prompt = await scene.ask("g", images=[ref])
    await until(lambda: bool(scene.worker._groups))
    scene.server.drain()
    scene.images.put(b"late")
    await until(lambda: not scene.worker._groups)
    lease = await scene.queue.claim(PROMPT_LANES, "other", lease_s=60, block_s=0)
    assert lease is not None
    assert (lease.work_id, lease.failures) == (prompt.work_id, [])


async def test_leases_are_renewed_while_sampling(shm_run: ShmRun, tmp_path: Path) -> None:
    scene = Scene(shm_run.name, tmp_path, tokens_per_s=120, lease_s=1.0)
    await scene.start()
    try:
        await scene.ask("slow")
        await until(lambda: scene.engine.num_asked > 0)
        for _ in range(14):
            assert await scene.queue.claim(PROMPT_LANES, "thief", lease_s=1.0, block_s=0.1) is None
        assert (await scene.answer()).group_id == "slow"
    finally:
        await scene.stop()


async def test_a_lost_lease_is_given_up(shm_run: ShmRun, tmp_path: Path) -> None:
    scene = Scene(shm_run.name, tmp_path, tokens_per_s=20, lease_s=0.3)
    await scene.start()
    try:
        await scene.ask("g")
        await until(lambda: scene.engine.num_asked > 0)
        stolen = await scene.queue.claim(PROMPT_LANES, "thief", lease_s=0.0, block_s=1)
        assert stolen is not None
        await scene.queue.complete(stolen, result_stream="rollouts", result=b"the thief's")
        await until(lambda: not scene.worker._groups)
        assert await scene.queue.length("rollouts") == 1
    finally:
        await scene.stop()


async def test_redis_goes_away_and_comes_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout_service.queue.worker._SHORTEST_PAUSE_S", 0.02)
    await scene.engine.pause()
    await scene.ask("sampled while away")
    await until(lambda: scene.engine.num_asked > 0)
    scene.queue.away = True
    await scene.engine.resume()
    await asyncio.sleep(0.3)
    scene.queue.away = False
    await scene.ask("asked afterwards")
    assert {(await scene.answer()).group_id for _ in range(2)} == {
        "sampled while away",
        "asked afterwards",
    }


async def test_draining_finishes_what_is_being_sampled(scene: Scene) -> None:
    await scene.engine.pause()
    await scene.ask("g")
    await until(lambda: scene.engine.num_asked > 0)
    stopping = asyncio.create_task(scene.stop())
    await asyncio.sleep(0.05)
    await scene.engine.resume()
    await stopping
    assert (await scene.answer()).group_id == "g"


async def test_draining_releases_what_takes_too_long(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout_service.server.DRAIN_S", 0.05)
    await scene.engine.pause()
    await scene.ask("g")
    await until(lambda: scene.engine.num_asked > 0)
    await scene.stop()
    lease = await scene.queue.claim(PROMPT_LANES, "other", lease_s=60, block_s=0)
    assert lease is not None
    assert lease.failures == []


async def test_quarantine_gives_groups_back_and_takes_no_more(
    scene: Scene, shm_run: ShmRun
) -> None:
    await scene.engine.pause()
    await scene.ask("g")
    await until(lambda: scene.engine.num_asked > 0)
    scene.engine.dead = True
    version = shm_run.write(1)
    await scene.server.updater.stage(version.stage)
    with pytest.raises(EngineError):
        await scene.server.updater.commit(version.commit)
    lease = await scene.queue.claim(PROMPT_LANES, "other", lease_s=60, block_s=20)
    assert lease is not None
    assert "quarantined" in lease.failures[0]
    assert "update failed" in (scene.server.why_not_ready() or "")


async def test_a_dead_engine_is_noticed(scene: Scene) -> None:
    scene.engine.dead = True
    scene.engine.errors = [EngineError("broken pipe")]
    await scene.ask("g")
    await asyncio.wait_for(scene.server.dead.wait(), 20)
    assert "gone" in (scene.server.why_not_ready() or "")
