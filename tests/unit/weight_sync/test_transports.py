"""Every transport behind the same two calls, and the way back from a quarantine."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save

from rollout_service.engine import GroupRequest
from services.errors import ConflictError, EngineError, InvalidInputError, NotFoundError
from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.weights import (
    AdapterConfig,
    CommitRequest,
    IpcHandle,
    PolicyRecord,
    Rendezvous,
    StageRequest,
    Transport,
    Version,
    WeightManifest,
    manifest_checksum,
)
from tests.shm_versions import Arrays, ShmRun, ShmVersion
from tests.updaters import Content, ToyEngine, updater_of
from weight_sync.engine import Staged
from weight_sync.transports.disk import disk_file
from weight_sync.transports.ipc import StagedHandles, encode_ipc
from weight_sync.transports.lora import StagedAdapter
from weight_sync.transports.nccl import StagedBroadcast
from weight_sync.updater import WeightUpdater

GPU = "GPU-3f1c"
UNIQUE_ID = base64.b64encode(bytes(128)).decode()


class GpuEngine(ToyEngine):
    """Would have a GPU; notes what it is given, and fails as often as it is told."""

    failures = 0

    def __init__(self) -> None:
        super().__init__(tokens_per_s=50_000, max_model_len=4096, gpus=(GPU,))
        self.groups: list[Rendezvous] = []
        self.loaded: list[tuple[Staged, WeightManifest]] = []

    async def connect(self, rendezvous: Rendezvous) -> None:
        if self.failures:
            self.failures -= 1
            raise EngineError("the trainer did not come")
        self.groups.append(rendezvous)

    async def load_weights(self, weights: Staged, manifest: WeightManifest) -> None:
        self.loaded.append((weights, manifest))
        if self.failures:
            self.failures -= 1
            raise EngineError("half of it came")
        await super().load_weights(weights, manifest)


@pytest.fixture
def engine() -> GpuEngine:
    return GpuEngine()


@pytest.fixture
async def updater(
    engine: GpuEngine, shm_run: ShmRun, tmp_path: Path
) -> AsyncIterator[WeightUpdater]:
    updater = updater_of(engine, shm_run.name, tmp_path)
    yield updater
    updater.close()


def bare(manifest: WeightManifest) -> WeightManifest:
    """Without digests, as for bytes that never lie in a file."""
    tensors = {n: e.model_copy(update={"digest": None}) for n, e in manifest.tensors.items()}
    return manifest.model_copy(update={"tensors": tensors})


def stage_of(
    manifest: WeightManifest, transport: Transport, unique_id: str | None = None
) -> StageRequest:
    rendezvous = unique_id and Rendezvous(unique_id=unique_id, world_size=2, rank=1)
    return StageRequest.model_validate(
        {
            "transport": transport,
            "manifest": manifest,
            "checksum": manifest_checksum(manifest),
            "rendezvous": rendezvous,
        }
    )


def commit_of(
    manifest: WeightManifest,
    handles: dict[str, IpcHandle] | None = None,
    *more: dict[str, IpcHandle],
) -> CommitRequest:
    return CommitRequest(
        policy_version=manifest.policy_version,
        checksum=manifest_checksum(manifest),
        ipc_handles=handles,
        more_ipc_handles=list(more),
    )


def handle(gpu: str = GPU) -> IpcHandle:
    """As torch's `reduce_tensor` describes a tensor of shape [4, 3]."""
    args = (None, (4, 3), (3, 1), 0, None, None, 0, b"m" * 64, 48, 0, False, b"c" * 64, 0, b"e", 1)
    return encode_ipc(gpu, args)


def write_to_disk(version: ShmVersion, root: Path, run: str) -> Path:
    manifest = version.manifest
    file = disk_file(root / run, manifest.version)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(version.file.read_bytes())
    version.file.unlink()
    return file


async def test_disk(updater: WeightUpdater, shm_run: ShmRun, tmp_path: Path) -> None:
    version = shm_run.write(1)
    write_to_disk(version, tmp_path, shm_run.name)
    with pytest.raises(NotFoundError):
        await updater.stage(version.stage)
    await updater.stage(stage_of(version.manifest, "disk"))
    await updater.commit(version.commit)
    assert updater.serving.policy_version == 1


@pytest.mark.parametrize("link", ["file", "folder"])
async def test_disk_follows_no_links(
    updater: WeightUpdater, shm_run: ShmRun, tmp_path: Path, link: str
) -> None:
    version = shm_run.write(1)
    file = write_to_disk(version, tmp_path, shm_run.name)
    moved = file if link == "file" else file.parent
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotFoundError):
        await updater.stage(stage_of(version.manifest, "disk"))


async def test_nccl_joins_once_for_each_group(
    updater: WeightUpdater, engine: GpuEngine, shm_run: ShmRun
) -> None:
    other_id = base64.b64encode(b"\x01" * 128).decode()
    for number, unique_id in ((1, UNIQUE_ID), (2, UNIQUE_ID), (3, other_id)):
        manifest = bare(shm_run.write(number).manifest)
        await updater.stage(stage_of(manifest, "nccl", unique_id))
        await updater.commit(commit_of(manifest))
        assert isinstance(engine.loaded[-1][0], StagedBroadcast)
    assert [group.unique_id for group in engine.groups] == [UNIQUE_ID, other_id]
    assert updater.serving.policy_version == 3


async def test_nccl_without_the_trainer_stages_nothing(
    updater: WeightUpdater, engine: GpuEngine, shm_run: ShmRun
) -> None:
    manifest = bare(shm_run.write(1).manifest)
    engine.failures = 1
    with pytest.raises(EngineError, match="did not come"):
        await updater.stage(stage_of(manifest, "nccl", UNIQUE_ID))
    assert (updater.staged_version, updater.state) == (None, "ready")
    await updater.stage(stage_of(manifest, "nccl", UNIQUE_ID))
    assert len(engine.groups) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"unique_id": "../../etc/passwd"},
        {"unique_id": "http://10.0.0.7:29600"},
        {"unique_id": "A" * 1000},
        {"rank": 0},
        {"world_size": 1},
        {"host": "10.0.0.7"},
    ],
)
def test_rendezvous_that_make_no_sense(change: dict[str, Any]) -> None:
    good = {"unique_id": UNIQUE_ID, "world_size": 2, "rank": 1}
    Rendezvous.model_validate(good)
    with pytest.raises(ValidationError):
        Rendezvous.model_validate(good | change)


async def test_ipc_takes_its_handles_with_the_commit(
    updater: WeightUpdater, engine: GpuEngine, shm_run: ShmRun
) -> None:
    manifest = bare(shm_run.write(1).manifest)
    await updater.stage(stage_of(manifest, "ipc"))
    all_of_them = {name: handle() for name in manifest.tensors}
    elsewhere = {name: handle("GPU-other") for name in manifest.tensors}
    for handles, message in (
        (None, "differ in 2 tensors"),
        ({"norm.weight": handle()}, r"such as embed\.weight"),
        (all_of_them | {"extra": handle()}, "such as extra"),
        (elsewhere, "of GPU other"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            await updater.commit(commit_of(manifest, handles))
        assert (updater.state, engine.loaded) == ("ready", [])
    await updater.commit(commit_of(manifest, all_of_them))
    ((staged, _),) = engine.loaded
    assert isinstance(staged, StagedHandles)
    assert staged.handles == {name: {"3f1c": one} for name, one in all_of_them.items()}
    assert updater.serving.policy_version == 1


async def test_ipc_wants_a_handle_for_each_gpu_of_the_server(
    updater: WeightUpdater, engine: GpuEngine, shm_run: ShmRun
) -> None:
    engine.gpus = (GPU, "GPU-77ab")
    manifest = bare(shm_run.write(1).manifest)
    await updater.stage(stage_of(manifest, "ipc"))
    first, second = ({name: handle(gpu) for name in manifest.tensors} for gpu in engine.gpus)
    for shares, message in (
        ((first,), "of GPU 3f1c; this server is on GPU-3f1c, GPU-77ab"),
        ((first, first), "of GPU 3f1c; this"),
        ((first, {"norm.weight": second["norm.weight"]}), r"such as embed\.weight"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            await updater.commit(commit_of(manifest, *shares))
    await updater.commit(commit_of(manifest, first, second))
    ((staged, _),) = engine.loaded
    assert isinstance(staged, StagedHandles)
    expected = {n: {"3f1c": first[n], "77ab": second[n]} for n in manifest.tensors}
    assert staged.handles == expected


async def test_gpu_transports_need_a_gpu(
    updater: WeightUpdater, engine: GpuEngine, shm_run: ShmRun
) -> None:
    engine.gpus = ()
    manifest = bare(shm_run.write(1).manifest)
    for request in (stage_of(manifest, "ipc"), stage_of(manifest, "nccl", UNIQUE_ID)):
        with pytest.raises(InvalidInputError, match="has no GPU"):
            await updater.stage(request)


@pytest.mark.parametrize("first", ["nccl", "ipc"])
async def test_bytes_that_move_inside_commit_are_not_asked_for_twice(
    updater: WeightUpdater, engine: GpuEngine, shm_run: ShmRun, first: Transport
) -> None:
    version = shm_run.write(1)
    manifest = bare(version.manifest)
    unique_id = UNIQUE_ID if first == "nccl" else None
    handles = {name: handle() for name in manifest.tensors}
    await updater.stage(stage_of(manifest, first, unique_id))
    engine.failures = 1
    with pytest.raises(EngineError):
        await updater.commit(commit_of(manifest, handles))
    assert len(engine.loaded) == 1
    assert updater.state == "quarantined"
    assert updater.failure is not None
    assert "version 1 of incarnation 1 could not be loaded: half of it came" in updater.failure
    await updater.stage(stage_of(manifest, first, unique_id))
    await updater.commit(commit_of(manifest, handles))
    assert updater.failure is None
    assert not updater.quarantined.is_set()


async def quarantine(updater: WeightUpdater, engine: GpuEngine, version: ShmVersion) -> None:
    await updater.stage(version.stage)
    engine.failures = 2
    with pytest.raises(EngineError):
        await updater.commit(version.commit)
    assert updater.state == "quarantined"


@pytest.mark.parametrize("transport", ["shm", "disk", "http", "nccl", "ipc"])
async def test_a_quarantined_server_takes_the_same_version_over_any_transport(
    updater: WeightUpdater,
    engine: GpuEngine,
    shm_run: ShmRun,
    tmp_path: Path,
    transport: Transport,
) -> None:
    version = shm_run.write(1)
    content = version.file.read_bytes()
    await quarantine(updater, engine, version)
    manifest = version.manifest if transport in ("shm", "disk", "http") else bare(version.manifest)
    if transport == "http":
        await updater.upload(Version(1, 1), Content(content))
    if transport == "disk":
        write_to_disk(version, tmp_path, shm_run.name)
    unique_id = UNIQUE_ID if transport == "nccl" else None
    await updater.stage(stage_of(manifest, transport, unique_id))
    handles = {name: handle() for name in manifest.tensors} if transport == "ipc" else None
    await updater.commit(commit_of(manifest, handles))
    assert updater.state == "ready"
    assert updater.serving == Version(
        incarnation=1, policy_version=1, checksum=manifest_checksum(manifest)
    )


async def test_a_quarantined_server_may_go_back_to_the_version_that_it_served(
    updater: WeightUpdater, engine: GpuEngine, shm_run: ShmRun
) -> None:
    """Its tensors may be half of the next one: so this is no repetition of an old commit."""
    served, next_one = shm_run.write(1), shm_run.write(2)
    await updater.stage(served.stage)
    await updater.commit(served.commit)
    await quarantine(updater, engine, next_one)
    await updater.abort(next_one.commit)
    with pytest.raises(ConflictError, match="nothing is"):
        await updater.commit(served.commit)
    await updater.stage(served.stage)
    await updater.commit(served.commit)
    assert (updater.state, updater.serving.policy_version) == ("ready", 1)
    assert engine.loaded[-1][1].policy_version == 1


async def test_catch_up_frees_a_quarantined_server(
    updater: WeightUpdater, engine: GpuEngine, shm_run: ShmRun
) -> None:
    version = shm_run.write(1)
    await quarantine(updater, engine, version)

    async def published() -> tuple[PolicyRecord, WeightManifest]:
        return version.record, version.manifest

    await updater.catch_up(published)
    assert (updater.state, updater.serving.policy_version) == ("ready", 1)


@pytest.mark.parametrize("transport", ["http", "nccl", "ipc", "lora"])
async def test_catch_up_waits_for_what_the_trainer_sends(
    updater: WeightUpdater, engine: GpuEngine, shm_run: ShmRun, transport: Transport
) -> None:
    version = shm_run.write(1)

    async def published() -> tuple[PolicyRecord, WeightManifest]:
        return version.record.model_copy(update={"transport": transport}), version.manifest

    await updater.catch_up(published)
    assert (updater.staged_version, updater.serving.policy_version) == (None, 0)
    await updater.stage(version.stage)
    await updater.commit(version.commit)
    await updater.catch_up(published)
    assert (updater.state, updater.serving.policy_version) == ("ready", 1)


@pytest.mark.parametrize(
    ("before", "after", "trained", "cleared"),
    [
        (1, 1, False, False),
        (1, 2, False, True),
        (1, 1, True, True),
        (None, 1, False, True),
    ],
)
async def test_image_embeddings_are_kept_for_the_same_vision_tower_only(
    updater: WeightUpdater,
    engine: GpuEngine,
    shm_run: ShmRun,
    before: int | None,
    after: int,
    trained: bool,
    cleared: bool,
) -> None:
    engine.tensors = None

    async def load(policy_version: int, tower: int, *, trained: bool) -> None:
        arrays: Arrays = {
            "model.visual.proj.weight": np.full(3, tower, np.float32),
            "lm.weight": np.full(3, policy_version, np.float32),
        }
        version = shm_run.write(policy_version, arrays=arrays, vision_trained=trained)
        await updater.stage(version.stage)
        await updater.commit(version.commit)

    if before is not None:
        await load(1, before, trained=True)
    await load(2, after, trained=trained)
    assert engine.loaded[-1][1].vision_trained == cleared


def adapter_of(rank: int, *, layer: str = "model.layers.0.q_proj") -> Arrays:
    rng = np.random.default_rng(rank)
    return {
        f"base_model.model.{layer}.lora_A.weight": rng.normal(size=(rank, 3)).astype(np.float32),
        f"base_model.model.{layer}.lora_B.weight": rng.normal(size=(4, rank)).astype(np.float32),
    }


def adapter_manifest(shm_run: ShmRun, arrays: Arrays, rank: int) -> WeightManifest:
    manifest = shm_run.write(1, arrays=arrays).manifest
    return manifest.model_copy(update={"adapter": AdapterConfig(rank=rank, alpha=16.0)})


async def test_lora(engine: GpuEngine, shm_run: ShmRun, tmp_path: Path) -> None:
    updater = updater_of(engine, shm_run.name, tmp_path, transport="lora")
    arrays = adapter_of(8)
    manifest = adapter_manifest(shm_run, arrays, 8)
    await updater.upload(Version(1, 1), Content(save(arrays)))
    await updater.stage(stage_of(manifest, "lora"))
    await updater.commit(commit_of(manifest))
    weights, loaded = engine.loaded[0]
    assert isinstance(weights, StagedAdapter)
    assert not loaded.vision_trained
    assert not weights.folder.exists(), "given back"
    whole = shm_run.write(2)
    with pytest.raises(InvalidInputError, match="does not take shm, but lora"):
        await updater.stage(whole.stage)
    updater.close()


async def test_a_server_without_adapters_takes_none(
    updater: WeightUpdater, shm_run: ShmRun
) -> None:
    manifest = adapter_manifest(shm_run, adapter_of(8), 8)
    with pytest.raises(InvalidInputError, match=r"does not take lora.*weights\.transport"):
        await updater.stage(stage_of(manifest, "lora"))


async def test_a_sampling_loop_sees_versions_only_between_their_commits(
    updater: WeightUpdater, engine: GpuEngine, shm_run: ShmRun
) -> None:
    """Across good commits, failed ones and a quarantine."""
    chat = [ChatMessage(role="user", content=[TextPart(text="What?")])]
    seen: list[list[int]] = []

    async def sample() -> None:
        while True:
            result = await engine.sample(
                GroupRequest(messages=chat, sampling=Sampling(n=2), request_id="r")
            )
            seen.extend(
                [span.policy_version for span in c.policy_versions] for c in result.completions
            )

    sampling = asyncio.create_task(sample())
    for number in range(1, 7):
        version = shm_run.write(number)
        await updater.stage(version.stage)
        engine.failures = number % 3
        if engine.failures == 2:
            with pytest.raises(EngineError):
                await updater.commit(version.commit)
            continue  # so this one is never served
        await updater.commit(version.commit)
        for _ in range(20):
            await asyncio.sleep(0)
    sampling.cancel()
    versions = [number for spans in seen for number in spans]
    assert not set(versions) & {2, 5}
    assert all(spans == sorted(spans) for spans in seen)
