"""Versions as deltas, from the trainer's sender to what a server would load."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from services.errors import InvalidInputError, NotFoundError
from services.schemas.weights import (
    PolicyRecord,
    Transport,
    Version,
    WeightManifest,
)
from services.settings import Settings
from tests.updaters import Content, ToyEngine, settings_of
from weight_sync.delta import last_version, patching
from weight_sync.delta.encoding import advance
from weight_sync.digests import tensor_digest
from weight_sync.engine import Staged
from weight_sync.file_format import raw_bytes
from weight_sync.publishing.publisher import WHOLE_EVERY
from weight_sync.transports.files import FileSender, StagedFile, delta_file
from weight_sync.transports.sender import CheckedManifest, Prepared, make_sender
from weight_sync.transports.uploads.kept import Uploads
from weight_sync.transports.uploads.spool import Spool
from weight_sync.updater import WeightUpdater

TRANSPORTS = ("shm", "disk", "http")


class Trainer:
    """A policy whose elements change a little at each step, and its sender."""

    def __init__(self, settings: Settings, dtype: torch.dtype = torch.bfloat16) -> None:
        sender = make_sender(settings)
        assert isinstance(sender, FileSender)
        self.sender = sender
        self.settings = settings
        self._noise = torch.Generator().manual_seed(0)
        shapes = {"embed": (60, 50), "norm": (7,), "empty": (0, 3), "scale": ()}
        self.tensors = {
            n: torch.randn(s, generator=self._noise).to(dtype) for n, s in shapes.items()
        }
        self.prepared: Prepared
        self.last: CheckedManifest | None = None

    def step(self, share: float = 0.01, *, whole: bool = False) -> CheckedManifest:
        """Change some elements, and prepare the version as the publisher does."""
        for name, tensor in self.tensors.items():
            moved = torch.rand(tensor.shape, generator=self._noise) < share
            self.tensors[name] = torch.where(moved, tensor * 1.01 + 1e-3, tensor)
        number = self.last.manifest.policy_version + 1 if self.last else 0
        base = self.last.as_base if self.last and not whole else None
        self.prepared = self.sender.prepare(self.tensors.items(), Version(1, number), base)
        self.last = CheckedManifest.of(
            WeightManifest(
                policy_version=number,
                incarnation=1,
                step=number,
                vision_trained=False,
                algorithm="blake3",
                tensors=self.prepared.tensors,
                delta=self.prepared.base,
            )
        )
        return self.last

    def file(self, checked: CheckedManifest, *, whole: bool = False) -> Path:
        file = self.sender.file(checked.version)
        return file if whole or checked.manifest.delta is None else delta_file(file)

    @property
    def digests(self) -> dict[str, str]:
        """Those of what it holds, whatever it has sent."""
        return {name: blake3(raw_bytes(t)).hexdigest() for name, t in self.tensors.items()}


class ReadingEngine(ToyEngine):
    """Reads what it loads."""

    tensors = None
    digests: dict[str, str]

    async def load_weights(self, staged: Staged, manifest: WeightManifest) -> None:
        assert isinstance(staged, StagedFile)
        await super().load_weights(staged, manifest)
        loaded = load_file(staged.path)
        self.digests = {name: blake3(raw_bytes(t)).hexdigest() for name, t in loaded.items()}


class Server:
    """A server's updater, which can be killed: then nothing of it is left but its folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.transport: Transport = settings.weights.transport
        self.kill()

    def kill(self) -> None:
        self.engine = ReadingEngine(tokens_per_s=50_000, max_model_len=4096)
        self.updater = WeightUpdater(self.settings, self.engine, Spool(self.settings))

    async def upload(self, checked: CheckedManifest, file: Path) -> None:
        content = await asyncio.to_thread(file.read_bytes)
        await self.updater.upload(checked.manifest.version, Content(content))

    async def stage(self, trainer: Trainer, checked: CheckedManifest) -> None:
        if self.transport == "http":
            await self.upload(checked, trainer.file(checked))
        await self.updater.stage(checked.stage(self.transport))

    async def commit(self, checked: CheckedManifest) -> None:
        await self.updater.commit(checked.commit())

    async def take(self, trainer: Trainer, checked: CheckedManifest) -> None:
        await self.stage(trainer, checked)
        await self.commit(checked)

    async def come_late(self, trainer: Trainer, checked: CheckedManifest) -> None:
        """As a server does that starts, or as it is seeded."""
        if self.transport == "http":
            whole = trainer.file(checked, whole=True)
            if not whole.exists():
                trainer.sender.write_again(whole)
            await self.upload(checked, whole)
            await self.updater.stage(checked.stage("http"))
            return await self.commit(checked)

        async def published() -> tuple[PolicyRecord, WeightManifest]:
            return checked.record(self.transport), checked.manifest

        return await self.updater.catch_up(published)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    made: list[tuple[Trainer, Server]] = []

    def make(transport: str, **options: Any) -> tuple[Trainer, Server]:
        run = f"delta-{uuid.uuid4().hex[:8]}"
        settings = settings_of(run, tmp_path, transport=transport, encoding="delta")
        made.append((Trainer(settings, **options), Server(settings)))
        return made[-1]

    yield make
    for trainer, server in made:
        server.updater.close()
        trainer.sender.close()


@pytest.mark.parametrize("transport", ["shm", "http"])
async def test_200_deltas_with_kills(make: Any, transport: str) -> None:
    """Every tensor of every version has the digest of the trainer's own."""
    trainer, server = make(transport)
    dice = np.random.default_rng(1)
    num_deltas = 0
    for number in range(206):
        checked = trainer.step(whole=number % WHOLE_EVERY == 0)
        num_deltas += checked.manifest.delta is not None
        phase = dice.choice(["before", "staged", "served", *13 * [""]])
        if phase == "before":
            server.kill()
        try:
            await server.stage(trainer, checked)
        except NotFoundError:  # sent what changed, and has nothing that this is a change of
            assert phase == "before"
            assert transport == "http"
            await server.come_late(trainer, checked)
        if phase == "staged":
            server.kill()
            await server.come_late(trainer, checked)
        await server.commit(checked)
        if phase == "served":
            server.kill()
            await server.come_late(trainer, checked)
        assert server.updater.serving == checked.version
        assert server.engine.digests == trainer.digests
    assert num_deltas > 190


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_does_not_pay_is_sent_whole(make: Any, transport: str) -> None:
    trainer, server = make(transport, dtype=torch.float32)
    kinds = []
    for share in (0, 0.9, 0.01, 0.3, 0.01, 0.01):
        checked = trainer.step(share)
        kinds.append(checked.manifest.delta and checked.manifest.delta.chain)
        await server.take(trainer, checked)
        assert server.engine.digests == trainer.digests
    # Version 3 takes 38 % of a whole one, 4 and 5 one or two more.
    assert kinds == [None, None, [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert trainer.step(0.3).manifest.delta is None


async def test_other_tensors_are_sent_whole(make: Any) -> None:
    trainer, server = make("shm")
    await server.take(trainer, trainer.step())
    trainer.tensors["norm"] = trainer.tensors["norm"].float()
    for _ in range(2):
        checked = trainer.step()
        await server.take(trainer, checked)
        assert server.engine.digests == trainer.digests
        whole = checked.manifest.policy_version == 1
        assert (checked.manifest.delta is None) == whole


def test_a_tensor_that_could_not_be_compared_is_not_sent(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the delta does not pay before it is its turn: it may be half the old one."""
    trainer, _ = make("shm")
    trainer.step()

    def failing(base: Any, new: Any) -> Any:
        if len(new) == 7:
            raise MemoryError("norm")
        return advance(base, new)

    monkeypatch.setattr(last_version, "advance", failing)
    monkeypatch.setattr(last_version, "num_threads", lambda: 2)
    with pytest.raises(MemoryError, match="norm"):
        trainer.step(1.0)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_version_without_a_change(make: Any, transport: str) -> None:
    trainer, server = make(transport)
    for _ in range(3):
        await server.take(trainer, trainer.step(0))
        assert server.engine.digests == trainer.digests
    assert trainer.prepared.changed_share == 0
    assert trainer.prepared.num_bytes == 0


def flip(file: Path) -> None:
    """One bit of a new value."""
    parts = load_file(file)
    parts["embed:values"].view(torch.int16)[0] ^= 1
    save_file(parts, file)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def move(file: Path) -> None:
    """The first tensor's changes lie one element on."""
    parts = load_file(file)
    parts["embed:gaps"][0] += 1
    save_file(parts, file)


def lose_half(file: Path) -> None:
    parts = load_file(file)
    del parts["embed:gaps"]
    save_file(parts, file)


def lead_out(file: Path) -> None:
    parts = load_file(file)
    parts["embed:gaps"][0] = 254
    parts["embed:gaps"][1:] = 254
    save_file(parts, file)


def of_another_tensor(file: Path) -> None:
    parts = load_file(file)
    save_file({name.replace("embed", "other"): part for name, part in parts.items()}, file)


def of_another_type(file: Path) -> None:
    parts = load_file(file)
    save_file(parts | {"embed:values": parts["embed:values"].float()}, file)


@pytest.mark.parametrize(("transport", "is_named"), [("shm", True), ("http", True), ("shm", False)])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "embed: its blake3 is not the manifest's"),
        (move, "embed: its blake3 is not the manifest's"),
        (truncate, "cut short"),
        (lose_half, "gaps and values of each"),
        (lead_out, "embed: the delta's positions lead out"),
        (of_another_tensor, "other: the version has no such tensor"),
        (of_another_type, "embed: the version has no such tensor, or of another type"),
    ],
)
async def test_a_damaged_delta_leaves_all_as_it_was(
    make: Any, transport: str, is_named: bool, damage: Callable[[Path], None], message: str
) -> None:
    """Also what is staged, in whose file the delta would have been applied.

    Where the manifest does not name the delta's digest, the result's show it.
    """
    trainer, server = make(transport)
    for _ in range(2):
        await server.take(trainer, trainer.step())
    staged = trainer.step()
    await server.stage(trainer, staged)
    digests = trainer.digests
    damaged = trainer.step(0.05)
    if not is_named:
        damaged = without_digest(damaged)
    elif "blake3" in message:
        message = "the delta's digest is not the manifest's"
    file = trainer.file(damaged)
    good = file.read_bytes()
    damage(file)
    with pytest.raises(InvalidInputError, match=message):
        await server.stage(trainer, damaged)
    await server.commit(staged)
    assert server.engine.digests == digests
    file.write_bytes(good)
    await server.take(trainer, damaged)
    assert server.engine.digests == trainer.digests


def without_digest(checked: CheckedManifest) -> CheckedManifest:
    manifest = checked.manifest
    assert manifest.delta is not None
    delta = manifest.delta.model_copy(update={"digest": None})
    return CheckedManifest.of(manifest.model_copy(update={"delta": delta}))


@pytest.mark.parametrize("is_named", [True, False])
async def test_the_result_is_read_where_it_does_not_follow(make: Any, is_named: bool) -> None:
    """From a verified base by the delta that the manifest names: then it is not."""
    trainer, server = make("http")
    for _ in range(2):
        await server.take(trainer, trainer.step())
    checked = trainer.step()
    checked = checked if is_named else without_digest(checked)
    digested: list[int] = []

    def note(data: memoryview, *_: Any) -> str:
        digested.append(len(data))
        return ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patching, "tensor_digest", note)
        with pytest.raises(InvalidInputError, match=r"digest|blake3"):
            await server.stage(trainer, checked)
    file = trainer.file(checked)
    assert (digested == [file.stat().st_size]) == is_named
    await server.stage(trainer, checked)
    await server.commit(checked)
    assert server.engine.digests == trainer.digests


async def chain_of(trainer: Trainer, length: int) -> list[CheckedManifest]:
    return [trainer.step(0.05) for _ in range(length)]


@pytest.mark.parametrize("transport", ["shm", "disk"])
@pytest.mark.parametrize("fault", ["reordered", "missing", "truncated", "no whole", "whole inside"])
async def test_a_broken_chain_is_refused_by_a_server_that_starts(
    make: Any, transport: str, fault: str
) -> None:
    trainer, server = make(transport)
    chain = await chain_of(trainer, 5)
    first, one, other = (trainer.file(checked) for checked in chain[:3])
    if fault == "reordered":
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif fault == "missing":
        one.unlink()
    elif fault == "truncated":
        truncate(one)
    elif fault == "no whole":
        first.unlink()
    else:
        one.write_bytes(first.read_bytes())
    with pytest.raises((InvalidInputError, NotFoundError)) as refused:
        await server.stage(trainer, chain[-1])
    expected = {
        "reordered": "blake3 is not the manifest's",
        "missing": "version 4 is a delta, and version 1, which it is applied to, is not here",
        "truncated": "cut short",
        "no whole": "version 0, which it is applied to, is not here",
        "whole inside": "a whole version lies where the manifest says a delta does",
    }
    assert expected[fault] in str(refused.value)
    assert not list(server.updater._uploads.spool.folder.glob("*"))
    whole = trainer.step(whole=True)
    await server.take(trainer, whole)
    assert server.engine.digests == trainer.digests


async def test_a_server_that_was_left_behind_reads_what_it_lacks(make: Any) -> None:
    """From its own file on; the first whole one is not read again."""
    trainer, server = make("shm")
    first, *_, checked = await chain_of(trainer, 3)
    await server.take(trainer, checked)
    truncate(trainer.file(first))
    *_, checked = await chain_of(trainer, 3)
    await server.take(trainer, checked)
    assert server.engine.digests == trainer.digests


async def test_a_wrong_base_is_refused(make: Any) -> None:
    """By its checksum where the server knows it, else by the result."""
    trainer, server = make("http")
    for _ in range(2):
        await server.take(trainer, trainer.step())
    checked = trainer.step()
    manifest = checked.manifest
    assert manifest.delta is not None
    other = manifest.delta.model_copy(update={"checksum": "0" * 64})
    wrong = CheckedManifest.of(manifest.model_copy(update={"delta": other}))
    with pytest.raises(InvalidInputError, match="is for version 1 of checksum 0000"):
        await server.stage(trainer, wrong)
    server.kill()
    impostor = trainer.file(checked).with_name("impostor")
    tensors = {name: torch.zeros_like(tensor) for name, tensor in trainer.tensors.items()}
    save_file(tensors, impostor)
    assert trainer.last is not None
    await server.updater.upload(Version(1, 1), Content(impostor.read_bytes()))
    with pytest.raises(InvalidInputError, match="blake3 is not the manifest's"):
        await server.stage(trainer, checked)
    await server.come_late(trainer, checked)
    assert server.engine.digests == trainer.digests


async def test_a_failure_halfway_is_undone(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tensors are changed already when another cannot be read."""
    trainer, server = make("shm")
    for _ in range(2):
        await server.take(trainer, trainer.step())
    checked = trainer.step(0.2)

    def failing(data: memoryview, algorithm: Any) -> str:
        if len(data) == 2 * 7:
            raise OSError("Input/output error")
        return tensor_digest(data, algorithm)

    monkeypatch.setattr(patching, "tensor_digest", failing)
    checked = without_digest(checked)
    with pytest.raises(OSError, match="Input/output"):
        await server.stage(trainer, checked)
    monkeypatch.undo()
    await server.take(trainer, checked)
    assert server.engine.digests == trainer.digests


async def test_a_delta_that_comes_once_more_while_it_is_applied(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the answer to its upload is lost: what is staged is the whole version anyway."""
    trainer, server = make("http")
    await server.take(trainer, trainer.step())
    checked, loop = trainer.step(), asyncio.get_running_loop()
    again: list[None] = []

    def patched(updates: Uploads, *args: Any) -> Any:
        made = once(updates, *args)  # in its thread, whose result the event loop does not have yet
        sent = server.upload(checked, trainer.file(checked))
        again.append(asyncio.run_coroutine_threadsafe(sent, loop).result(30))
        return made

    once = Uploads._patched
    monkeypatch.setattr(Uploads, "_patched", patched)
    await server.take(trainer, checked)
    assert len(again) == 1
    assert server.engine.digests == trainer.digests


@pytest.mark.parametrize("transport", ["nccl", "ipc", "lora"])
def test_transports_without_a_file_of_the_policy_refuse_deltas(
    tmp_path: Path, transport: str
) -> None:
    with pytest.raises(ValidationError, match=f"weights.transport = '{transport}': {transport} s"):
        settings_of("r", tmp_path, transport=transport, encoding="delta")


def test_the_version_before_takes_a_versions_memory(make: Any) -> None:
    """It is written over in place, whole or not, and given tensors are let go."""
    trainer, _ = make("http")
    kept = trainer.sender._before
    places = []
    for share in (0.01, 0.01, 0.9, 0.01):
        trainer.step(share)
        assert {n: t.tolist() for n, t in kept.tensors.items()} == {
            n: t.tolist() for n, t in trainer.tensors.items()
        }
        places.append({name: tensor.data_ptr() for name, tensor in kept.tensors.items()})
    assert places == 4 * places[:1]
    assert not set(places[0].values()) & {
        t.data_ptr() for t in trainer.tensors.values() if t.numel()
    }
