"""The state machine of weight updates, with the fake engine and real files."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import pytest

from rollout_service.engine import EngineResult, GroupRequest
from rollout_service.fake.engine import FakeEngine
from services.errors import (
    ConflictError,
    EngineError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.weights import (
    CommitRequest,
    Encoding,
    PolicyRecord,
    StageRequest,
    Version,
    WeightManifest,
)
from tests.shm_versions import ShmRun, ShmVersion, tensors_of
from tests.updaters import ToyEngine, updater_of
from weight_sync.engine import Staged
from weight_sync.updater import WeightUpdater

MESSAGES = [ChatMessage(role="user", content=[TextPart(text="What is there?")])]


class FailingEngine(ToyEngine):
    """Fails to load as often as it is told."""

    failures = 0

    async def load_weights(self, weights: Staged, manifest: WeightManifest) -> None:
        if self.failures:
            self.failures -= 1
            raise EngineError("half of the tensors are on the meta device")
        await super().load_weights(weights, manifest)


@pytest.fixture(params=get_args(Encoding), autouse=True)
def encoding(request: pytest.FixtureRequest, shm_run: ShmRun) -> None:
    """All of this holds for versions that come as deltas, too."""
    shm_run.encoding = request.param


@pytest.fixture
def engine() -> FailingEngine:
    return FailingEngine(tokens_per_s=20_000, max_model_len=4096)


@pytest.fixture
async def updater(
    engine: FailingEngine, shm_run: ShmRun, tmp_path: Path
) -> AsyncIterator[WeightUpdater]:
    updater = updater_of(engine, shm_run.name, tmp_path)
    yield updater
    updater.close()


async def sample(engine: FakeEngine, n: int = 2) -> EngineResult:
    return await engine.sample(
        GroupRequest(messages=MESSAGES, sampling=Sampling(n=n), request_id="r")
    )


async def load(updater: WeightUpdater, version: ShmVersion) -> None:
    await updater.stage(version.stage)
    await updater.commit(version.commit)


def versions_in(result: EngineResult) -> set[int]:
    return {span.policy_version for c in result.completions for span in c.policy_versions}


async def test_stage_then_commit_changes_what_is_served(
    updater: WeightUpdater, engine: FailingEngine, shm_run: ShmRun
) -> None:
    version = shm_run.write(1)
    await updater.stage(version.stage)
    assert updater.serving == Version()
    assert updater.staged_version == 1
    assert versions_in(await sample(engine)) == {0}
    await updater.commit(version.commit)
    assert updater.serving == Version(incarnation=1, policy_version=1, checksum=version.checksum)
    assert updater.staged_version is None
    assert updater.state == "ready"
    assert versions_in(await sample(engine)) == {1}


async def test_every_call_may_be_repeated(updater: WeightUpdater, shm_run: ShmRun) -> None:
    version = shm_run.write(1)
    await updater.stage(version.stage)
    await updater.stage(version.stage)
    await updater.commit(version.commit)
    version.file.unlink()  # so a second load would fail
    await updater.commit(version.commit)
    await updater.stage(version.stage)
    assert updater.serving.policy_version == 1


async def test_a_request_in_flight_gets_spans_of_both_versions(
    updater: WeightUpdater, engine: FailingEngine, shm_run: ShmRun
) -> None:
    version = shm_run.write(1)
    await updater.stage(version.stage)
    running = asyncio.create_task(sample(engine, n=8))
    await asyncio.sleep(0.03)
    await updater.commit(version.commit)
    for completion in (await running).completions:
        spans = completion.policy_versions
        assert [span.policy_version for span in spans] == [0, 1]
        assert (spans[0].start, spans[0].end, spans[1].end) == (
            0,
            spans[1].start,
            len(completion.token_ids),
        )


@pytest.mark.parametrize("which", ["nothing staged", "other version", "other checksum"])
async def test_commit_of_what_is_not_staged(
    updater: WeightUpdater, shm_run: ShmRun, which: str
) -> None:
    version = shm_run.write(2)
    request = version.commit
    if which != "nothing staged":
        await updater.stage(version.stage)
        change = {"policy_version": 3} if which == "other version" else {"checksum": "0" * 64}
        request = CommitRequest.model_validate(request.model_dump() | change)
    with pytest.raises(ConflictError):
        await updater.commit(request)
    assert updater.serving == Version()


async def test_older_versions_are_refused(updater: WeightUpdater, shm_run: ShmRun) -> None:
    await load(updater, shm_run.write(5))
    for older in (shm_run.write(4), shm_run.write(5, arrays=tensors_of(99))):
        with pytest.raises(ConflictError, match="not later"):
            await updater.stage(older.stage)
    with pytest.raises(ConflictError):
        await updater.commit(shm_run.write(4).commit)


async def test_a_later_incarnation_may_go_back_in_steps_and_fences_off_the_earlier(
    updater: WeightUpdater, shm_run: ShmRun
) -> None:
    await load(updater, shm_run.write(5, incarnation=1))
    await load(updater, shm_run.write(3, incarnation=2))
    assert updater.serving.order == (2, 3)
    with pytest.raises(ConflictError):
        await updater.stage(shm_run.write(6, incarnation=1).stage)


async def test_a_later_stage_replaces_the_earlier(updater: WeightUpdater, shm_run: ShmRun) -> None:
    first, second = shm_run.write(1), shm_run.write(2)
    await updater.stage(first.stage)
    await updater.stage(second.stage)
    with pytest.raises(ConflictError):
        await updater.commit(first.commit)
    with pytest.raises(ConflictError, match="older"):
        await updater.stage(first.stage)
    await updater.commit(second.commit)


async def test_abort_forgets_and_may_be_repeated(updater: WeightUpdater, shm_run: ShmRun) -> None:
    version = shm_run.write(1)
    await updater.abort(version.commit)
    await updater.stage(version.stage)
    await updater.abort(shm_run.write(2).commit)
    assert updater.staged_version == 1
    await updater.abort(version.commit)
    assert updater.staged_version is None
    await load(updater, version)
    with pytest.raises(ConflictError, match="already served"):
        await updater.abort(version.commit)


async def test_bad_stages_leave_the_good_one(updater: WeightUpdater, shm_run: ShmRun) -> None:
    good = shm_run.write(1)
    await updater.stage(good.stage)
    wrong_checksum = StageRequest(manifest=good.manifest, checksum="0" * 64)
    gone = shm_run.write(2)
    gone.file.unlink()
    incomplete = {"embed.weight": tensors_of(3)["embed.weight"]}
    other_shape = tensors_of(4) | {"norm.weight": tensors_of(4)["norm.weight"].reshape(3, 1)}
    with pytest.raises(InvalidInputError, match="checksum"):
        await updater.stage(wrong_checksum)
    with pytest.raises(NotFoundError):
        await updater.stage(gone.stage)
    with pytest.raises(InvalidInputError, match="missing: norm"):
        await updater.stage(shm_run.write(3, arrays=incomplete).stage)
    with pytest.raises(InvalidInputError, match="shape"):
        await updater.stage(shm_run.write(4, arrays=other_shape).stage)
    assert updater.staged_version == 1
    await updater.commit(good.commit)


async def test_a_partial_version_may_leave_out_what_was_never_replaced(
    updater: WeightUpdater, shm_run: ShmRun
) -> None:
    part = {"norm.weight": tensors_of(1)["norm.weight"]}
    other = {"embed.weight": tensors_of(3)["embed.weight"]}
    await load(updater, shm_run.write(1, arrays=part, partial=True))
    await load(updater, shm_run.write(2, arrays=part, partial=True))
    with pytest.raises(InvalidInputError, match=r"norm.weight, …; restart this server"):
        await updater.stage(shm_run.write(3, arrays=other, partial=True).stage)
    await load(updater, shm_run.write(4))
    with pytest.raises(InvalidInputError, match="leaves out 1 tensors"):
        await updater.stage(shm_run.write(5, arrays=part, partial=True).stage)
    assert updater.serving.policy_version == 4


async def test_a_failed_load_is_retried_while_paused(
    updater: WeightUpdater, engine: FailingEngine, shm_run: ShmRun
) -> None:
    engine.failures = 1
    await load(updater, shm_run.write(1))
    assert updater.state == "ready"
    assert versions_in(await sample(engine)) == {1}


async def test_quarantine_samples_nothing_until_a_load_succeeds(
    updater: WeightUpdater, engine: FailingEngine, shm_run: ShmRun
) -> None:
    engine.failures = 2
    version = shm_run.write(1)
    with pytest.raises(EngineError):
        await load(updater, version)
    assert updater.state == "quarantined"
    assert updater.quarantined.is_set()
    assert updater.serving == Version()
    frozen = asyncio.create_task(sample(engine))
    await asyncio.sleep(0.1)
    assert not frozen.done()
    await updater.commit(version.commit)
    assert not updater.quarantined.is_set()
    assert versions_in(await frozen) == {1}


async def test_a_commit_runs_to_its_end_when_its_caller_goes_away(
    updater: WeightUpdater, engine: FailingEngine, shm_run: ShmRun
) -> None:
    version = shm_run.write(1)
    await updater.stage(version.stage)
    await engine.pause()  # holds the commit where it loads
    call = asyncio.create_task(updater.commit(version.commit))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await updater.commit(version.commit)
    assert updater.serving.policy_version == 1
    assert versions_in(await sample(engine)) == {1}


class Published:
    """A policy record that changes."""

    def __init__(self, *versions: ShmVersion) -> None:
        self.versions = list(versions)

    async def read(self) -> tuple[PolicyRecord, WeightManifest] | None:
        if not self.versions:
            return None
        version = self.versions.pop(0) if len(self.versions) > 1 else self.versions[0]
        return version.record, version.manifest


async def test_catch_up(updater: WeightUpdater, shm_run: ShmRun) -> None:
    await updater.catch_up(Published().read)
    assert updater.serving == Version()
    version = shm_run.write(7)
    await updater.catch_up(Published(version).read)
    assert updater.serving.policy_version == 7
    await updater.catch_up(Published(shm_run.write(6)).read)
    assert updater.serving.policy_version == 7


@pytest.mark.parametrize("wrong", [{"digest": None}, {"adapter": {"rank": 1, "alpha": 1}}])
async def test_a_record_and_manifest_that_do_not_fit_are_not_the_end(
    updater: WeightUpdater, shm_run: ShmRun, wrong: dict[str, Any]
) -> None:
    """Each can be read; a server that ended over them would end again at every start."""
    version = shm_run.write(1)
    tree = version.manifest.model_dump(mode="json")
    if "adapter" in wrong:
        tree |= wrong
    else:
        next(iter(tree["tensors"].values())).update(wrong)
    manifest = WeightManifest.model_validate(tree)

    async def read() -> tuple[PolicyRecord, WeightManifest]:
        return version.record, manifest

    with pytest.raises(UnavailableError, match="its record and manifest in Redis"):
        await updater.catch_up(read)
    await updater.catch_up(Published(version).read)
    assert updater.serving.policy_version == 1


async def test_catch_up_with_a_trainer_that_goes_on_meanwhile(
    updater: WeightUpdater, shm_run: ShmRun
) -> None:
    old, new = shm_run.write(7), shm_run.write(8)
    old.file.unlink()
    await updater.catch_up(Published(old, new).read)
    assert updater.serving.policy_version == 8


async def test_catch_up_with_what_cannot_be_had(updater: WeightUpdater, shm_run: ShmRun) -> None:
    version = shm_run.write(7)
    version.file.unlink()
    with pytest.raises(UnavailableError, match="version 7"):
        await updater.catch_up(Published(version).read)
    assert updater.state == "ready"
