"""The trainer's service side on real parts: Redis, reward service, rollout servers (fake engine).

No gradient is computed here: the loop below only takes batches and publishes new versions.
"""

import asyncio
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from redis import ConnectionError
from redis import Redis as BlockingRedis
from transformers import AutoProcessor

from scene_data.dataset import Sample, SceneDataset, open_dataset
from scene_data.sampler import EpochSampler, group_id
from scene_data.toy.scenes import make_toy
from scene_graph.graph import SceneGraph, SceneObject
from services.errors import ConflictError, InvalidInputError, UnavailableError, WaitTimeoutError
from services.host.ports import free_port
from services.images import ImageStore
from services.redis.client import connect
from services.redis.keys import PROMPT_LANES, RunKeys
from services.redis.queue import DeadLetter, Lease, RedisQueue
from services.redis.registry import Registry
from services.redis.server import redis_server_binary, redis_server_command
from services.schemas.common import ImageRef
from services.schemas.prompts import PromptGroup
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan
from services.schemas.weights import ServerRecord
from services.settings import Settings, dump_settings
from tests.alone import Alone, first_start
from tests.conftest import RedisStarter
from tests.processes import sgg_process, wait_for, wait_ready
from trainer.batches.images import ImageCheck
from trainer.collection import collector as collector_module
from trainer.collection.collector import Collector
from trainer.collection.cursor import Cursor, CursorState
from trainer.collection.prompts import PromptSource
from trainer.connection import ServiceConnection
from trainer.types import StepBatch
from weight_sync.publishing.publisher import WeightPublisher

PLACEHOLDER = 7
GOLDEN = Path(__file__).parents[1] / "contract/golden/rollout_group.json"
MODEL = Path(__file__).parents[2] / "assets/toy-start"
NUM_ROWS = 40


@dataclass
class Run:
    settings: Settings
    config: Path
    keys: RunKeys
    folder: Path
    stack: ExitStack
    reward: "subprocess.Popen[bytes] | None" = None

    def serve_rollout(self) -> "subprocess.Popen[bytes]":
        """Until others see it too: it answers over HTTP before its first heartbeat."""
        before = self._servers()
        process = self._serve("rollout", self.settings.rollout.url)
        wait_for("the registration", lambda: bool(self._servers() - before))
        return process

    def _servers(self) -> set[str]:
        """Ids of the registered servers that are ready."""

        async def read() -> set[str]:
            redis = connect(self.settings.redis)
            try:
                servers = await Registry(redis, self.keys).servers()
            finally:
                await redis.aclose()
            return {server.server_id for server in servers if server.state == "ready"}

        return asyncio.run(read())

    def serve_reward(self) -> "subprocess.Popen[bytes]":
        return self._serve("reward", self.settings.reward.url)

    def _serve(self, service: str, url: str) -> "subprocess.Popen[bytes]":
        log = self.folder / f"{service}.log"
        process = self.stack.enter_context(
            sgg_process(log, "serve", service, "--config", str(self.config))
        )
        wait_ready(url, process, log)
        return process

    def queue(self) -> RedisQueue:
        return RedisQueue(connect(self.settings.redis), self.keys)

    def collector(
        self,
        incarnation: int = 1,
        cursor: CursorState | None = None,
        image_check: ImageCheck | None = None,
    ) -> Collector:
        dataset = open_dataset(self.settings.data.train)
        prompts = PromptSource(self.settings, dataset, [PLACEHOLDER], image_check, incarnation)
        collector = Collector(self.settings, prompts, Cursor(cursor))
        self.stack.callback(collector.close)
        return collector

    def publisher(self, incarnation: int = 1) -> WeightPublisher:
        publisher = WeightPublisher(self.settings, incarnation)
        self.stack.callback(publisher.close)
        return publisher


MakeRun = Callable[..., Run]


def weights(version: int) -> list[tuple[str, torch.Tensor]]:
    return [("w", torch.full((2, 3), float(version)))]


def positions(batches: list[StepBatch]) -> list[int]:
    return [group.position for batch in batches for group in batch.groups]


def train_until(
    run: Run, collector: Collector, publisher: WeightPublisher, steps: range, *, low: int
) -> list[StepBatch]:
    """Until every position under `low` is used: one that was on a killed server comes last."""
    batches: list[StepBatch] = []
    for step in steps:
        batches += train(run, collector, publisher, range(step, step + 1))
        if collector.cursor_state().low >= low:
            return batches
    raise AssertionError(f"{collector.cursor_state()} after {len(batches)} steps")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, num_train=NUM_ROWS, num_heldout=2)
    return folder


@pytest.fixture
def make_run(tmp_path: Path, toy: Path, redis_url: str) -> Iterator[MakeRun]:
    """A function that lays out a run and starts its reward service."""
    with ExitStack() as stack:

        def make(redis: str = redis_url, **trainer: object) -> Run:
            name = f"collector-{uuid.uuid4().hex[:8]}"
            settings = Settings.model_validate(
                {
                    "run": {"name": name, "root": str(tmp_path)},
                    "model": {"path": "none", "box_space": "relative_1000"},
                    "data": {"train": str(toy / "train.parquet"), "template": "toy"},
                    "redis": {"url": redis, "lease_s": 2.0},
                    "reward": {"url": f"http://127.0.0.1:{free_port()}"},
                    "rollout": {
                        "url": f"http://127.0.0.1:{free_port()}",
                        "engine": "fake",
                        "fake_tokens_per_s": 20_000,
                    },
                    "trainer": {
                        "groups_per_step": 3,
                        "group_size": 4,
                        "wait_timeout_s": 40,
                        **trainer,
                    },
                }
            )
            config = tmp_path / "run.toml"
            config.write_text(dump_settings(settings))
            run = Run(settings, config, RunKeys(name), tmp_path, stack)
            run.reward = run.serve_reward()
            return run

        yield make


def train(
    run: Run, collector: Collector, publisher: WeightPublisher, steps: range
) -> list[StepBatch]:
    batches = []
    for step in steps:
        batch = collector.take(step)
        batches.append(batch)
        publisher.begin(weights(step + 1), step + 1).result()
        collector.published(batch, step + 1)
    return batches


def test_lag_zero_trains_the_data_order_on_fresh_groups(make_run: MakeRun) -> None:
    run = make_run(max_policy_lag=0)
    run.serve_rollout()
    collector, publisher = run.collector(), run.publisher()
    assert publisher.begin(weights(0), 0).result() == 1
    collector.start(0)
    batches = train(run, collector, publisher, range(4))
    assert positions(batches) == list(range(12))
    for step, batch in enumerate(batches):
        for group in batch.groups:
            spans = [s for c in group.rollout.completions for s in c.policy_versions]
            assert {s.policy_version for s in spans} == {step}
            assert abs(sum(group.advantages)) < 1e-4
    assert any(any(g.advantages) for b in batches for g in b.groups)
    assert collector.cursor_state() == CursorState(low=12)


def test_killed_rollout_server_loses_and_repeats_nothing(make_run: MakeRun) -> None:
    run = make_run(max_policy_lag=1)
    server = run.serve_rollout()
    collector, publisher = run.collector(), run.publisher()
    publisher.begin(weights(0), 0).result()
    collector.start(0)
    batches = train(run, collector, publisher, range(3))
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert publisher.begin(weights(4), 4).result() == 0, "nobody serves, and nobody is waited for"
    run.serve_rollout()  # from version 0: it must catch up before it samples
    batches += train_until(run, collector, publisher, range(4, 400), low=18)
    used = positions(batches)
    assert sorted(used) == sorted(set(used))
    assert set(used) >= set(range(18)), "no position is skipped, whatever its server's fate"
    first = [s for g in batches[3].groups for c in g.rollout.completions for s in c.policy_versions]
    assert min(s.policy_version for s in first) >= 2, "version 0 was never sampled again"


def test_killed_reward_service_is_waited_for_and_never_a_reward(make_run: MakeRun) -> None:
    run = make_run(max_policy_lag=1)
    run.serve_rollout()
    collector, publisher = run.collector(), run.publisher()
    publisher.begin(weights(0), 0).result()
    collector.start(0)
    batches = train(run, collector, publisher, range(1))
    assert run.reward is not None
    run.reward.kill()
    run.reward.wait()
    back = threading.Timer(2.0, run.serve_reward)
    back.start()
    batches += train(run, collector, publisher, range(1, 4))
    back.join()
    assert len(set(positions(batches))) == 12
    statuses = {r.status for batch in batches for group in batch.groups for r in group.rewards}
    assert statuses <= {"ok", "no_answer", "invalid_json", "schema_violation"}
    assert any(r.total > 0 for group in batches[-1].groups for r in group.rewards)


def test_killed_redis_loses_and_repeats_nothing(
    make_run: MakeRun,
    start_redis: RedisStarter,
    tmp_path: Path,
) -> None:
    port, started = free_port(), list["subprocess.Popen[bytes]"]()
    (tmp_path / "redis").mkdir()
    redis = start_redis(tmp_path / "redis", port)
    try:
        run = make_run(redis=f"redis://127.0.0.1:{port}/0", max_policy_lag=1)
        run.serve_rollout()
        collector, publisher = run.collector(), run.publisher()
        publisher.begin(weights(0), 0).result()
        collector.start(0)
        batches = train(run, collector, publisher, range(2))
        redis.kill()
        redis.wait()
        restart = threading.Timer(
            2.0, lambda: started.append(start_redis(tmp_path / "redis", port))
        )
        restart.start()
        batches += train_until(run, collector, publisher, range(2, 400), low=15)
        restart.join()
        used = positions(batches)
        assert len(used) == len(set(used))
        assert set(used) >= set(range(15))
    finally:
        for process in (redis, *started):
            process.kill()
            process.wait()


def test_redis_emptied_while_the_server_restarts_costs_seconds(make_run: MakeRun) -> None:
    """The policy is published again by nobody else: the next version needs groups of this one."""
    run = make_run(max_policy_lag=0)
    server = run.serve_rollout()
    collector, publisher = run.collector(), run.publisher()
    publisher.begin(weights(0), 0).result()
    collector.start(0)
    batches = train(run, collector, publisher, range(2))
    publisher.note_committed(2)
    server.kill()
    server.wait()

    async def empty() -> None:
        redis = connect(run.settings.redis)
        await redis.delete(*[key async for key in redis.scan_iter(f"{run.keys.prefix}*")])
        await redis.aclose()

    asyncio.run(empty())
    run.serve_rollout()
    batches += train(run, collector, publisher, range(2, 4))
    assert positions(batches) == list(range(12))
    assert {group.oldest_policy_version for group in batches[2].groups} == {2}
    assert asyncio.run(_record(run)) == (1, 4, 2)


def test_a_fail_over_by_sentinel_is_followed(make_run: MakeRun, tmp_path: Path) -> None:
    with redis_with_sentinel(tmp_path) as (url, primary):
        run = make_run(redis=url, max_policy_lag=1)
        server = run.serve_rollout()
        collector, publisher = run.collector(), run.publisher()
        publisher.begin(weights(0), 0).result()
        collector.start(0)
        batches = train(run, collector, publisher, range(2))
        primary.kill()
        primary.wait()
        batches += train_until(run, collector, publisher, range(2, 400), low=15)
        status = subprocess.run(
            [sys.executable, "-m", "cli.main", "status", "--config", str(run.config)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert status.returncode == 0, status.stderr
        assert f"policy version {len(batches)}" in status.stdout
        assert server.poll() is None
        collector.close()
        publisher.close()
    used = positions(batches)
    assert len(used) == len(set(used))
    assert set(used) >= set(range(15))


@contextmanager
def redis_with_sentinel(folder: Path) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """A primary, its replica and a Sentinel that promotes it within a second."""
    first, second, sentinel = (free_port() for _ in range(3))
    conf = folder / "sentinel.conf"
    conf.write_text(
        f"port {sentinel}\nbind 127.0.0.1\n"
        f"sentinel monitor main 127.0.0.1 {first} 1\n"
        "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
    )
    commands = []
    for port, extra in ((first, []), (second, ["--replicaof", "127.0.0.1", str(first)])):
        commands.append([*redis_server_command(folder / f"redis-{port}", port), *extra])
    commands.append([redis_server_binary(), str(conf), "--sentinel"])
    processes = [subprocess.Popen(c, stdout=subprocess.DEVNULL) for c in commands]
    try:
        watcher = BlockingRedis(port=sentinel, protocol=2)
        wait_for("the replica", lambda: num_replicas(watcher) == 1)
        yield f"redis+sentinel://127.0.0.1:{sentinel}/main", processes[0]
        watcher.close()
    finally:
        for process in processes:
            process.kill()
            process.wait()


def num_replicas(sentinel: BlockingRedis) -> int:
    """That have caught up, as the Sentinel knows them."""
    try:
        replicas: Any = sentinel.sentinel_slaves("main")
    except ConnectionError:
        return 0
    return sum(replica["master-link-status"] == "ok" for replica in replicas)


class LossyQueue(RedisQueue):
    """Redis does what it is told, but its first three answers are lost on the way."""

    lost = 0
    """One count for all queues."""

    async def complete(
        self, lease: Lease, *, result_stream: str | None = None, result: bytes = b""
    ) -> bool:
        done = await super().complete(lease, result_stream=result_stream, result=result)
        if LossyQueue.lost < 3:
            LossyQueue.lost += 1
            raise UnavailableError("the connection broke")
        return done


def test_lost_acknowledgement_loses_no_group(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(max_policy_lag=0)
    run.serve_rollout()
    monkeypatch.setattr(collector_module, "RedisQueue", LossyQueue)
    collector, publisher = run.collector(), run.publisher()
    publisher.begin(weights(0), 0).result()
    collector.start(0)
    batches = train(run, collector, publisher, range(2))
    assert positions(batches) == [0, 1, 2, 3, 4, 5]
    assert LossyQueue.lost == 3


def test_servers_that_outlive_redis_data_still_listen(make_run: MakeRun) -> None:
    """Redis forgets the incarnation, the server does not: the next trainer must rise above it."""
    run = make_run(max_policy_lag=0)
    run.serve_rollout()
    assert run.publisher(incarnation=7).begin(weights(5), 5).result() == 1
    prompts = PromptSource(run.settings, open_dataset(run.settings.data.train), [PLACEHOLDER])
    with ServiceConnection(run.settings, prompts, first_start(run.settings), Alone()) as services:
        services.start(weights(0), 0)
        batch = services.take(0)
    assert {group.rollout.incarnation for group in batch.groups} == {8}
    assert {group.oldest_policy_version for group in batch.groups} == {0}


def test_new_incarnation_asks_again_for_what_was_open(make_run: MakeRun) -> None:
    run = make_run(max_policy_lag=1)
    run.serve_rollout()
    collector, publisher = run.collector(), run.publisher()
    publisher.begin(weights(0), 0).result()
    collector.start(0)
    first = train(run, collector, publisher, range(2))
    state = collector.cursor_state()
    collector.close()  # as a crash would leave it: groups are on the streams
    again, publisher = run.collector(incarnation=2, cursor=state), run.publisher(incarnation=2)
    publisher.begin(weights(2), 2).result()
    again.start(2)
    second = train_until(run, again, publisher, range(2, 400), low=12)
    used = positions(first + second)
    assert len(used) == len(set(used))
    assert set(used) >= set(range(12))
    assert {g.rollout.incarnation for b in second for g in b.groups} == {2}


def test_trainers_that_were_taken_for_dead_are_shut_out(make_run: MakeRun) -> None:
    """Three in a row stop at different places; a fourth goes on; then the three wake up."""
    run = make_run(max_policy_lag=0)
    run.serve_rollout()
    taking, *others = [stopped_trainer(run, before) for before in ("take", "publish", "commit")]
    prompts = PromptSource(run.settings, open_dataset(run.settings.data.train), [PLACEHOLDER])
    with ServiceConnection(run.settings, prompts, first_start(run.settings), Alone()) as services:
        services.start(weights(0), 0)
        batches = []
        for step in range(6):
            if step == 2:
                for process, log in others:
                    wake(process, log)
                taking[0].send_signal(signal.SIGCONT)  # while groups come for the fourth
            batches.append(services.take(step))
            services.publish(weights(step + 1), step + 1, batches[-1])
            services.committed(step + 1)
        wake(*taking)
    assert positions(batches) == list(range(18))
    assert {group.rollout.incarnation for batch in batches for group in batch.groups} == {4}
    assert asyncio.run(_record(run)) == (4, 6, 6)


def wake(process: "subprocess.Popen[bytes]", log: Path) -> None:
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 1
    assert "superseded: a later one" in log.read_text().splitlines()[-1]


def stopped_trainer(run: Run, before: str) -> tuple["subprocess.Popen[bytes]", Path]:
    """A trainer process that stands still right before it takes, publishes or commits."""
    log = run.folder / f"{before}.log"
    command = [sys.executable, "-m", "tests.integration.stopping_trainer", str(run.config), before]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    run.stack.callback(process.wait)
    run.stack.callback(process.kill)
    state = Path(f"/proc/{process.pid}/stat")
    wait_for(f"the stop before {before}", lambda: state.read_text().rpartition(")")[2][1] == "T")
    return process, log


async def _record(run: Run) -> tuple[int, int, int]:
    """Incarnation and version of the published policy, and the committed step."""
    redis = connect(run.settings.redis.url)
    registry = Registry(redis, run.keys)
    try:
        policy = await registry.policy()
        assert policy is not None
        return policy[0].incarnation, policy[0].policy_version, await registry.committed_step()
    finally:
        await redis.aclose()


def test_a_later_trainers_group_is_handed_back(make_run: MakeRun) -> None:
    run = make_run(max_policy_lag=0)
    collector = run.collector(incarnation=1)
    collector.start(0)
    group = RolloutGroup.model_validate_json(GOLDEN.read_text())
    group = group.model_copy(update={"incarnation": 2})

    async def put() -> None:
        queue = run.queue()
        await queue.enqueue("rollouts", group.work_id, group.model_dump_json().encode())
        await queue.aclose()

    async def left() -> str | None:
        queue = run.queue()
        lease = await queue.claim("rollouts", "trainer-0", lease_s=30, block_s=4)
        await queue.aclose()
        return lease.work_id if lease else None

    asyncio.run(put())
    with pytest.raises(ConflictError, match="incarnation 1 is superseded"):
        collector.take(0)
    assert asyncio.run(left()) == group.work_id


async def answer(
    run: Run,
    count: int,
    version: int,
    token: int = 65,
    prompt_token_ids: Sequence[int] = (1,),
) -> list[str]:
    """Play the rollout server for `count` groups."""
    queue = run.queue()
    answered = []
    for _ in range(count):
        lease = await queue.claim(PROMPT_LANES, "scripted", lease_s=30, block_s=4)
        assert lease is not None
        prompt = PromptGroup.model_validate_json(lease.body)
        completion = Completion(
            text="<answer>{}</answer>",
            token_ids=[token, 66],
            rollout_logprobs=[-1.0, -0.5],
            finish_reason="stop",
            policy_versions=[VersionSpan(policy_version=version, start=0, end=2)],
        )
        group = RolloutGroup(
            group_id=prompt.group_id,
            attempt=prompt.attempt,
            incarnation=prompt.incarnation,
            server_id="scripted",
            prompt_token_ids=list(prompt_token_ids),
            completions=[completion] * 4,
            sampling_s=0,
        )
        body = group.model_dump_json().encode()
        assert await queue.complete(lease, result_stream="rollouts", result=body)
        answered.append(prompt.work_id)
    await queue.aclose()
    return answered


def test_stale_groups_are_recorded_and_asked_for_again(make_run: MakeRun) -> None:
    run = make_run(max_policy_lag=0)
    collector = run.collector()
    collector.start(0)
    asyncio.run(answer(run, 3, version=0))
    first = collector.take(0)
    collector.published(first, 1)
    asyncio.run(answer(run, 3, version=0))  # they should have been sampled with version 1
    # The stale ones are found when the batch is formed; the second attempt comes after that.
    late = threading.Thread(target=lambda: asyncio.run(answer(run, 3, version=1)))
    late.start()
    batch = collector.take(1)
    late.join()
    assert [g.rollout.attempt for g in batch.groups] == [1, 1, 1]
    assert len(batch.outcome.stale) == 3
    unused = batch.unused
    assert [each.group_id for each in unused] == batch.outcome.stale
    assert [each.group.rollout.attempt for each in unused if each.group] == [0, 0, 0]
    graph = open_dataset(run.settings.data.train)[batch.groups[0].index].graph
    reference = batch.groups[0].reference
    assert reference is not None
    assert [item.bbox for item in reference.graph.objects] == [o.bbox for o in graph.objects]
    assert positions([batch]) == [3, 4, 5]


def test_with_a_lag_servers_are_asked_for_nothing_that_is_not_published(make_run: MakeRun) -> None:
    run = make_run(max_policy_lag=1, max_token_lag=1)

    async def waiting() -> int:
        queue = run.queue()
        try:
            return await queue.length(PROMPT_LANES)
        finally:
            await queue.aclose()

    collector = run.collector()
    collector.start(0)
    asyncio.run(answer(run, 3, version=0))
    first = collector.take(0)
    asyncio.run(answer(run, 3, version=0))
    collector.published(first, 1)
    asyncio.run(answer(run, 3, version=1))
    second = collector.take(2)  # while version 1 trains, three groups are too old for version 2
    assert len(second.outcome.stale) == 3
    assert asyncio.run(waiting()) == 0
    collector.published(second, 2)
    assert asyncio.run(waiting()) == 6
    asyncio.run(answer(run, 6, version=2))
    third = collector.take(3)
    # Stale groups are listed as they were found, a batch by position.
    used = sorted(group.rollout.group_id for group in third.groups)
    assert used == sorted(second.outcome.stale)


def test_unusable_group_is_dead_and_replaced(make_run: MakeRun) -> None:
    run = make_run(max_policy_lag=0)
    collector = run.collector()
    collector.start(0)
    asyncio.run(answer(run, 1, version=0, token=PLACEHOLDER))
    asyncio.run(answer(run, 3, version=0))
    batch = collector.take(0)
    assert positions([batch]) == [1, 2, 3]
    assert len(batch.outcome.dead) == 1
    letters = asyncio.run(_dead(run))
    assert [letter.work_id.split("#")[0] for letter in letters] == batch.outcome.dead
    (dead,) = batch.unused
    assert dead.reason == letters[0].failures[-1]
    assert dead.group is not None, "its answers are kept"


def test_a_prompt_that_does_not_fit_its_image_is_dead(make_run: MakeRun) -> None:
    processor = AutoProcessor.from_pretrained(MODEL)
    run = make_run(max_policy_lag=0)
    check, image = ImageCheck(processor), processor.image_token_id
    fits = check.num_tokens(open_dataset(run.settings.data.train)[0].image_bytes)
    collector = run.collector(image_check=check)
    collector.start(0)
    asyncio.run(answer(run, 1, version=0, prompt_token_ids=[image] * (fits - 1)))
    asyncio.run(answer(run, 3, version=0, prompt_token_ids=[image] * fits))
    batch = collector.take(0)
    assert positions([batch]) == [1, 2, 3]
    (letter,) = asyncio.run(_dead(run))
    assert f"has {fits - 1} image tokens" in letter.failures[0]


def test_rows_that_cannot_be_read_or_scored_cost_themselves(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(max_policy_lag=0)
    run.serve_rollout()
    order = EpochSampler(NUM_ROWS, run.settings.run.seed)
    unreadable, unscorable = order.at(1)[1], order.at(2)[1]
    real = SceneDataset.__getitem__

    def spoiled(dataset: SceneDataset, index: int) -> Sample:
        sample = real(dataset, index)
        if index == unreadable:
            raise InvalidInputError("row 7 has no image")
        if index == unscorable:
            return replace(sample, graph=SceneGraph(objects=too_many, relationships=()))
        return sample

    one = SceneObject(id="cat.1", bbox=(0.0, 0.0, 9.0, 9.0))
    too_many = tuple(replace(one, id=f"cat.{i}") for i in range(501))
    monkeypatch.setattr(SceneDataset, "__getitem__", spoiled)
    collector, publisher = run.collector(), run.publisher()
    publisher.begin(weights(0), 0).result()
    collector.start(0)
    batches = train(run, collector, publisher, range(2))
    assert positions(batches) == [0, 3, 4, 5, 6, 7]
    dead = [name for batch in batches for name in batch.outcome.dead]
    assert dead == [group_id(run.settings.run.name, *order.at(position)) for position in (1, 2)]
    unused = [each for batch in batches for each in batch.unused]
    assert [each.group is None for each in unused] == [True, False]
    assert unused[0].index == unreadable
    # What was sampled is in the dead letters too; nobody was ever asked about the other one.
    letters = asyncio.run(_dead(run))
    assert [(li.stream, li.work_id.partition("#")[0]) for li in letters] == [("rollouts", dead[1])]
    assert "cannot be scored" in letters[0].failures[0]
    assert collector.cursor_state().low == 8


def test_a_server_of_another_host_finds_the_images(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(max_policy_lag=0)

    async def register() -> None:
        redis = connect(run.settings.redis.url)
        elsewhere = ServerRecord(
            server_id="elsewhere-1",
            url="http://127.0.0.1:1",
            host="elsewhere",
            gpu=None,
            state="ready",
            policy_version=0,
            tokens_per_s=0,
            groups_done=0,
        )
        await Registry(redis, run.keys).heartbeat(elsewhere, ttl_s=60)
        await redis.aclose()

    async def fetch() -> bytes:
        queue, redis = run.queue(), connect(run.settings.redis.url)
        lease = await queue.claim(PROMPT_LANES, "elsewhere-1", lease_s=30, block_s=4)
        assert lease is not None
        (ref,) = PromptGroup.model_validate_json(lease.body).images
        data = await ImageStore(tmp_path / "empty", redis, run.keys).fetch(ref)
        await queue.aclose()
        await redis.aclose()
        return data

    asyncio.run(register())
    run.collector().start(0)
    assert asyncio.run(fetch())[:4] == b"\x89PNG"


def test_the_store_holds_the_images_of_open_groups_whole(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector_module, "WATCH_S", 0.05)
    run = make_run(max_policy_lag=0)
    store = ImageStore(run.settings.run.files.images)
    of_an_earlier_start = store.put(b"pixels")
    collector, publisher = run.collector(), run.publisher()
    collector.start(0)
    wait_for("the earlier one to go", lambda: not store.has(of_an_earlier_start))
    asked = {i.sha256 for prompt in collector._pool.unanswered() for i in prompt.images}
    assert 1 <= len(asked) <= 3
    assert asked <= store.names()
    assert len(store.names()) <= 2 * 3, "those of the next step are made ahead"
    torn = store.path(ImageRef(sha256=min(asked), num_bytes=1))
    torn.write_bytes(torn.read_bytes()[:-1])
    wait_for("the torn one to be whole", lambda: sha256(torn.read_bytes()).hexdigest() == torn.name)
    run.serve_rollout()
    publisher.begin(weights(0), 0).result()
    collector.take(0)
    wait_for("all to go", lambda: not asked & store.names())


async def _dead(run: Run) -> list[DeadLetter]:
    queue = run.queue()
    try:
        return await queue.dead_letters()
    finally:
        await queue.aclose()


def test_waiting_for_nobody_ends_with_what_was_missing(make_run: MakeRun) -> None:
    run = make_run(max_policy_lag=0, wait_timeout_s=1.0)
    collector = run.collector()
    collector.start(0)
    with pytest.raises(WaitTimeoutError, match=r"3 groups are with the rollout servers"):
        collector.take(0)
