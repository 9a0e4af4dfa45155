"""The training loop's connection: what goes on beside a step, and what waits for it."""

import asyncio
import base64
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rollout_service.fake.engine import FakeEngine
from scene_data.dataset import open_dataset
from scene_data.sampler import EpochSampler
from scene_data.toy.scenes import make_toy
from services.errors import SettingsError, SupersededError
from services.host.environment import child_environment
from services.host.ports import free_port
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.run_folder.index import RolloutIndex
from services.schemas.weights import WeightManifest
from services.settings import Settings, dump_settings
from services.telemetry import Tracing
from tests.alone import Alone, first_start
from tests.live_servers import LiveServer, cluster_settings, registered, serving, wait_registered
from tests.processes import ROOT, sgg_process, wait_for, wait_ready
from trainer.algorithms.stats import Stats
from trainer.batches.preparation import Prepared, PreparedBatches
from trainer.checkpoints.checkpoint import CheckpointStore
from trainer.collection.cursor import CursorState
from trainer.collection.prompts import PromptSource
from trainer.connection import ServiceConnection
from trainer.not_finite import MAX_SKIPPED, NotFiniteError
from trainer.policy.updates import StepOutput
from trainer.ranks.stop import StopAskedError, StopRequest
from trainer.ranks.watch import RankWatch, watched
from trainer.ranks.write_guard import WriteGuard
from trainer.records.evaluation import StepEvaluation
from trainer.records.files import RunRecords
from trainer.records.phases import PhaseClock
from trainer.records.tracing import SERVICE
from trainer.setup import _take
from trainer.train import train_steps
from trainer.training_run import TrainingRun
from trainer.types import StepBatch
from weight_sync.engine import Staged
from weight_sync.publishing.publisher import WeightPublisher
from weight_sync.transports.ipc import StagedHandles

PLACEHOLDER = 999


class GatedEngine(FakeEngine):
    """Loads a version when the gate is open."""

    def __init__(self) -> None:
        super().__init__(tokens_per_s=20_000, max_model_len=2048)
        self.gate = threading.Event()
        self.gate.set()
        self.loaded: list[int] = []

    async def load_weights(self, weights: Staged, manifest: WeightManifest) -> None:
        await asyncio.to_thread(self.gate.wait, 30)
        await super().load_weights(weights, manifest)
        self.loaded.append(manifest.policy_version)


def weights(version: int, taken: list[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    for i in range(20):
        if taken is not None:
            taken.append(f"t{i}")
        yield f"t{i}", torch.full((2, 3), float(version))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Settings]:
    """A run with a reward service; each test has its own server."""
    folder = tmp_path_factory.mktemp("link")
    make_toy(folder / "toy", num_train=16, num_heldout=2)
    tree = cluster_settings(folder, "unused", redis_url, "disk").model_dump(
        mode="json", exclude_none=True
    )
    tree["data"] = {"train": str(folder / "toy/train.parquet"), "template": "toy"}
    tree["reward"] = {"url": f"http://127.0.0.1:{free_port()}"}
    tree["trainer"] |= {"groups_per_step": 2, "group_size": 4}
    settings = Settings.model_validate(tree)
    config, log = folder / "run.toml", folder / "log"
    config.write_text(dump_settings(settings))
    with sgg_process(log, "serve", "reward", "--config", str(config)) as process:
        wait_ready(settings.reward.url, process, log)
        yield settings


@contextmanager
def linked(
    base: Settings, max_policy_lag: int, stop: StopRequest | None = None
) -> Iterator[tuple[ServiceConnection, LiveServer]]:
    run = base.run.model_copy(update={"name": f"link-{uuid.uuid4().hex[:8]}"})
    trainer = base.trainer.model_copy(update={"max_policy_lag": max_policy_lag})
    settings = base.model_copy(update={"run": run, "trainer": trainer})
    with ExitStack() as stack:
        serves = stack.enter_context(ExitStack())
        server = wait_registered(serves.enter_context(serving(settings, GatedEngine())))
        server.stop = serves.close
        prompts = PromptSource(settings, open_dataset(settings.data.train), [PLACEHOLDER])
        link = stack.enter_context(
            ServiceConnection(settings, prompts, first_start(settings), Alone(), stop)
        )
        link.start(weights(0), 0)
        yield link, server


def test_a_start_whose_number_another_one_has_takes_the_next(base: Settings) -> None:
    """Redis loses its data between two starts, and gives the second one the number of the first."""
    run = base.run.model_copy(update={"name": f"link-{uuid.uuid4().hex[:8]}"})
    settings = base.model_copy(update={"run": run})
    first, second = WriteGuard(run.folder), WriteGuard(run.folder)

    async def forget() -> None:
        async with connect(settings.redis) as redis:
            prefix = RunKeys(run.name).prefix
            await redis.delete(*[key async for key in redis.scan_iter(f"{prefix}*")])

    assert _take(settings, Alone(), first, 0) == 1
    asyncio.run(forget())
    assert _take(settings, Alone(), second, 0) == 2
    second.check()
    with pytest.raises(SupersededError):
        first.check()


def test_a_step_trains_while_servers_take_the_version_before_it(base: Settings) -> None:
    with linked(base, max_policy_lag=1) as (link, server):
        assert isinstance(server.engine, GatedEngine)
        first = link.take(0)
        server.engine.gate.clear()
        link.publish(weights(1), 1, first)
        second = link.take(1)
        assert server.policy().policy_version == 0
        assert {group.oldest_policy_version for group in second.groups} == {0}
        server.engine.gate.set()
        state = link.state(1)
        assert server.policy().policy_version == 1
        used = {group.position for group in first.groups}
        assert all(p < state.cursor.low or p in state.cursor.ahead for p in used)
        link.publish(weights(2), 2, second)
    assert server.engine.loaded == [0, 1, 2], "the end waits for the last version"


def later_release(folder: Path) -> Path:
    """A copy of the project whose messages have a later version and fields of their own."""
    for package in (p.parent for p in ROOT.glob("*/__init__.py") if p.parent.name != "tests"):
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("*.pyc"))
    new_field = "    of_a_later_release: list[int] = [1]\n"
    for name, old, new in (
        ("versions", 'SCHEMA_VERSION = "1.0"', 'SCHEMA_VERSION = "1.1"'),
        ("versions", "    schema_version: ", f"{new_field}    schema_version: "),
        ("rollouts", "    token_ids: ", f"{new_field}    token_ids: "),
    ):
        file = folder / f"services/schemas/{name}.py"
        text = file.read_text()
        assert text.count(old) == 1
        file.write_text(text.replace(old, new))
    return folder


def test_servers_of_a_later_release_take_over_while_the_trainer_runs(
    base: Settings, tmp_path: Path
) -> None:
    with linked(base, max_policy_lag=1) as (link, server):
        rollout = server.settings.rollout.model_copy(
            update={"url": f"http://127.0.0.1:{free_port()}"}
        )
        settings = server.settings.model_copy(update={"rollout": rollout})
        config, log = tmp_path / "later.toml", tmp_path / "log"
        config.write_text(dump_settings(settings))
        serve = ("serve", "rollout", "--config", str(config))
        with sgg_process(log, *serve, root=later_release(tmp_path / "later")) as process:
            wait_ready(settings.rollout.url, process, log)
            batch = link.take(0)
            link.publish(weights(1), 1, batch)
            link.state(1)
            assert len(registered(settings)) == 2
            server.stop()
            for step in (1, 2, 3):
                batch = link.take(step)
                link.publish(weights(step + 1), step + 1, batch)
            link.state(4)
            wait_for("a heartbeat", lambda: registered(settings)[0].policy_version == 4)
            [record] = registered(settings)
            assert record.url == settings.rollout.url
            assert {group.rollout.server_id for group in batch.groups} == {record.server_id}
            assert {group.rollout.schema_version for group in batch.groups} == {"1.1"}


def test_a_stop_leaves_no_version_behind(
    base: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server hangs in one when the run is to stop: none is sent after it, and it ends."""
    monkeypatch.setattr("trainer.connection.SERVERS_GRACE_S", 0.5)
    stop = StopRequest()
    with linked(base, max_policy_lag=1, stop=stop) as (link, server):
        assert isinstance(server.engine, GatedEngine)
        first = link.take(0)
        server.engine.gate.clear()
        link.publish(weights(1), 1, first)
        second = link.take(1)
        with stop.noted():
            stop.hear(signal.SIGTERM)
        taken: list[str] = []
        link.publish(weights(2, taken), 2, second)
        assert not taken
        used = {group.position for batch in (first, second) for group in batch.groups}
        cursor = link.state(2).cursor
        assert all(p < cursor.low or p in cursor.ahead for p in used)
        with pytest.raises(StopAskedError):
            link.look_for_stop()
        server.engine.gate.set()
    assert "it stops without them" in caplog.text


def test_closing_the_publisher_ends_the_version_that_is_under_way(base: Settings) -> None:
    """Nobody answers where Redis should be."""
    redis = base.redis.model_copy(update={"url": f"redis://127.0.0.1:{free_port()}/0"})
    publisher = WeightPublisher(base.model_copy(update={"redis": redis}), 1)
    begun = publisher.begin(weights(1), 1)
    publisher.close()
    assert begun.cancelled()


def test_without_lag_a_version_is_served_when_it_is_published(base: Settings) -> None:
    with linked(base, max_policy_lag=0) as (link, server):
        for step in (0, 1):
            link.publish(weights(step + 1), step + 1, link.take(step))
            assert server.policy().policy_version == step + 1


@pytest.mark.parametrize("max_policy_lag", [0, 1])
def test_a_version_that_cannot_be_written_ends_the_run_with_its_error(
    base: Settings, max_policy_lag: int
) -> None:
    """And the tensors, which other ranks take part in gathering, are gathered to the end."""
    taken: list[str] = []

    def run() -> None:
        with linked(base, max_policy_lag) as (link, server):
            batch = link.take(0)
            (server.settings.run.folder / "weights").chmod(0o777)
            link.publish(weights(1, taken), 1, batch)
            link.state(1)

    with pytest.raises(SettingsError, match="not a folder that you alone can write to"):
        run()
    assert len(taken) == 20


class SpoiltEngine:
    """Trains nothing; the first steps give no finite number, and then the second mini-batch."""

    def __init__(self, num_spoilt: int, link: ServiceConnection) -> None:
        self._left = num_spoilt
        self._link = link
        self.done_before: list[CursorState] = []
        """Which positions were done when a version was asked for."""

    def train_step(self, mini_batches: Any, learning_rate: float) -> StepOutput:
        self._left -= 1
        spoilt = self._left >= 0
        completions = [c for groups in mini_batches for g in groups for c in g.rollout.completions]
        logprobs = [[-1.0] * len(c.token_ids) for c in completions]
        if spoilt:
            logprobs[1][0] = math.nan
        norms = [math.inf if spoilt else 1.0, math.nan]
        return StepOutput(stats=Stats(), grad_norms=[norms] * 2, policy_logprobs=logprobs)

    def weights(self, _: object) -> Iterator[tuple[str, Tensor]]:
        self.done_before.append(self._link.state(0).cursor)
        return weights(1)

    def save_state(self, folder: Path) -> None:
        pass


@contextmanager
def one_step(
    base: Settings, link: ServiceConnection, *, num_spoilt: int, ahead: bool
) -> Iterator[TrainingRun]:
    """A run of one step, with an engine that fails at first."""

    def prepared(batch: StepBatch) -> Prepared:
        groups: Any = batch.groups
        mini_batches = [groups[:1], groups[1:]]
        return Prepared(groups=groups, mini_batches=mini_batches, metrics={})

    folder, ranks = base.run.root / f"step-{uuid.uuid4().hex[:8]}", Alone()
    run = base.run.model_copy(update={"name": folder.name, "root": folder.parent})
    settings = base.model_copy(update={"run": run})
    guard = WriteGuard(settings.run.folder)
    engine: Any = SpoiltEngine(num_spoilt, link)
    with watched(RankWatch(settings.run.folder / "ranks", rank=0, size=1, limit_s=60)) as watch:
        yield TrainingRun(
            settings=settings,
            ranks=ranks,
            engine=engine,
            connection=link,
            batches=PreparedBatches(link.take, prepared, ahead=ahead, num_steps=1),
            records=RunRecords(settings, 0, guard),
            checkpoints=CheckpointStore(settings.run.folder / "checkpoints", 1, guard),
            guard=guard,
            phase=PhaseClock(watch, 0, Tracing(SERVICE, None)),
            evaluation=StepEvaluation(),
            stop=StopRequest(),
            num_steps=1,
            num_done=0,
            num_committed=0,
        )


def test_a_step_is_tried_with_other_groups_until_its_numbers_are_finite(
    base: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        linked(base, max_policy_lag=1) as (link, server),
        one_step(base, link, num_spoilt=2, ahead=True) as run,
    ):
        train_steps(run)
        assert run.is_done
        (used,) = read_lines(run.settings.run.folder / "ledger.jsonl")
        (logged,) = read_lines(run.settings.run.folder / "metrics.jsonl")
        assert (logged["num_skipped"], logged["num_skipped_updates"]) == (2, 2)
        assert logged["grad_norm"] == 1.0
        assert len(used["skipped"]) == 5
        assert len({*used["skipped"], *used["group_ids"]}) == 6
        for text in (used["skipped"][0], used["skipped"][2]):
            assert f"log-probabilities of {text} are not finite" in caplog.text
        said = (
            f"2 of 4 updates of step 0 were skipped.*nothing was learnt from {used['skipped'][4]}"
        )
        assert re.search(said, caplog.text)
        index = RolloutIndex(run.settings.run.folder)
        tried = {*used["group_ids"], used["skipped"][4]}
        assert {line.group_id for line in index.page().lines} == tried
        engine: Any = run.engine
        assert engine.done_before == [CursorState()], "nothing is done until the step is"
        assert server.policy().policy_version == 1
        cursor = link.state(1).cursor
        done = {*range(cursor.low), *cursor.ahead}
        order = EpochSampler(16, seed=0)
        rows = {f"r{order.at(position)[1]}" for position in done}
        ids = [*used["skipped"], *used["group_ids"]]
        assert rows == {name.rpartition("-")[2] for name in ids}


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_whose_numbers_stay_so_ends_and_names_the_groups(base: Settings) -> None:
    with (
        linked(base, max_policy_lag=0) as (link, server),
        one_step(base, link, num_spoilt=MAX_SKIPPED, ahead=False) as run,
    ):
        with pytest.raises(NotFiniteError, match=r"skipped 5 times .* log-probabilities of link-"):
            train_steps(run)
        assert server.policy().policy_version == 0
        assert link.state(0).cursor == CursorState()


def test_a_training_thread_that_fails_ends_the_run_with_its_own_error(base: Settings) -> None:
    def failing() -> Iterator[tuple[str, Tensor]]:
        yield from weights(1)
        raise RuntimeError("a rank is gone")

    with linked(base, max_policy_lag=1) as (link, server):
        batch = link.take(0)
        with pytest.raises(RuntimeError, match="a rank is gone"):
            link.publish(failing(), 1, batch)
        assert server.policy().policy_version == 0
    files = (server.settings.run.folder / "weights").iterdir()
    assert [file.name for file in files] == ["1-0.safetensors"]


class SharingEngine(FakeEngine):
    """Notes whose memory it is told to read."""

    def __init__(self, number: int) -> None:
        super().__init__(tokens_per_s=20_000, max_model_len=2048, gpus=(f"GPU-{number}",))
        self.memories: set[bytes] = set()

    async def load_weights(self, weights: Staged, manifest: WeightManifest) -> None:
        assert isinstance(weights, StagedHandles)
        self.memories = {
            base64.b64decode(handle.memory)
            for handles in weights.handles.values()
            for handle in handles.values()
        }
        await super().load_weights(weights, manifest)


def test_two_ranks_share_weights_with_the_servers_on_their_gpus(
    base: Settings, tmp_path: Path
) -> None:
    tree = base.model_dump(mode="json", exclude_none=True)
    tree["run"] |= {"name": f"share-{uuid.uuid4().hex[:8]}"}
    tree["weights"] = {"transport": "ipc"}
    tree["trainer"] |= {"num_ranks": 2}
    settings = Settings.model_validate(tree)
    config = tmp_path / "run.toml"
    config.write_text(dump_settings(settings))
    engines = [SharingEngine(0), SharingEngine(1)]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        for engine in engines:
            wait_registered(stack.enter_context(serving(settings, engine)))
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.integration.sharing_rank", str(config)],
                env=child_environment(RANK=str(rank), **place),
                stderr=subprocess.PIPE,
            )
            for rank in range(2)
        ]
        errors = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], errors
    assert [engine.memories for engine in engines] == [{b"\0" * 64}, {b"\1" * 64}]
