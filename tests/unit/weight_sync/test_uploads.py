"""Uploads: what is kept of them, and what is staged from them."""

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from rollout_service.fake.engine import FakeEngine
from services.errors import (
    ConflictError,
    InvalidInputError,
    NoRoomError,
    NotFoundError,
    SettingsError,
    TooLargeError,
    UnavailableError,
    WaitTimeoutError,
)
from services.schemas.weights import DigestAlgorithm, StageRequest, Version
from tests.shm_versions import HASHES, ShmRun, ShmVersion, tensors_of
from tests.updaters import ToyEngine, pieces, settings_of, updater_of
from weight_sync.file_format import MAX_HEADER_BYTES
from weight_sync.transports import uploads
from weight_sync.transports.uploads import IncomingFile, Spool, spool_folder
from weight_sync.updater import WeightUpdater


@pytest.fixture
def engine() -> FakeEngine:
    engine = ToyEngine(tokens_per_s=1e6, max_model_len=4096)
    engine.num_elements = 15
    return engine


@pytest.fixture
async def updater(
    engine: FakeEngine, shm_run: ShmRun, tmp_path: Path
) -> AsyncIterator[WeightUpdater]:
    updater = updater_of(engine, shm_run.name, tmp_path)
    yield updater
    updater.close()


def spool_of(shm_run: ShmRun, root: Path) -> Path:
    return spool_folder(settings_of(shm_run.name, root))


def files_of(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


async def send(updater: WeightUpdater, version: ShmVersion, content: bytes | None = None) -> None:
    content = version.file.read_bytes() if content is None else content
    manifest = version.manifest
    await updater.upload(manifest.version, pieces(content))


def by_http(version: ShmVersion) -> StageRequest:
    return version.stage.model_copy(update={"transport": "http"})


async def load(updater: WeightUpdater, version: ShmVersion) -> None:
    await send(updater, version)
    await updater.stage(by_http(version))
    await updater.commit(version.commit)


def test_hosts_with_one_tmpdir_have_spools_of_their_own(
    shm_run: ShmRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Spool(settings_of(shm_run.name, tmp_path))
    os.close(here.open_draft())
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    there = Spool(settings_of(shm_run.name, tmp_path))
    assert files_of(here.folder) == ["upload.draft"], "a start there leaves what is here"
    assert there.folder.parent == here.folder.parent
    here.remove()


@pytest.mark.parametrize("algorithm", HASHES)
async def test_an_upload_is_staged_and_served(
    updater: WeightUpdater, shm_run: ShmRun, algorithm: DigestAlgorithm
) -> None:
    version = shm_run.write(1, algorithm=algorithm)
    await send(updater, version)
    version.file.unlink()
    await updater.stage(by_http(version))
    await updater.commit(version.commit)
    assert updater.serving.policy_version == 1


async def test_the_folder_is_private_holds_two_versions_and_goes_at_the_end(
    updater: WeightUpdater, shm_run: ShmRun, tmp_path: Path
) -> None:
    folder = spool_of(shm_run, tmp_path)
    for number in (1, 2, 3):
        await load(updater, shm_run.write(number))
    assert files_of(folder) == ["1-2.safetensors", "1-3.safetensors"]
    assert {entry.stat().st_mode & 0o777 for entry in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    updater.close()
    assert not folder.exists()


async def test_nothing_is_kept_of_an_upload_that_ends_early(
    updater: WeightUpdater, shm_run: ShmRun, tmp_path: Path
) -> None:
    version = shm_run.write(1)
    content = version.file.read_bytes()
    for cut in (0, 5, 8, 40, len(content) - 1):
        with pytest.raises(InvalidInputError, match="cut short"):
            await send(updater, version, content[:cut])
        assert files_of(spool_of(shm_run, tmp_path)) == []
    with pytest.raises(NotFoundError, match="PUT it to /v1/weights/files/1/1 first"):
        await updater.stage(by_http(version))
    await load(updater, version)


async def test_nothing_is_kept_when_the_client_goes_away(
    updater: WeightUpdater, shm_run: ShmRun, tmp_path: Path
) -> None:
    version = shm_run.write(1)
    content = version.file.read_bytes()

    async def broken() -> AsyncIterator[bytes]:
        yield content[:50]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await updater.upload(Version(1, 1), broken())
    assert files_of(spool_of(shm_run, tmp_path)) == []
    await load(updater, version)


async def test_an_upload_that_falls_silent_is_given_up_and_others_wait_their_turn(
    updater: WeightUpdater, shm_run: ShmRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = shm_run.write(1)
    monkeypatch.setattr(uploads, "_SILENCE_S", 0.2)
    started = asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        yield version.file.read_bytes()[:50]
        started.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(updater.upload(Version(1, 1), silent()))
    await started.wait()
    with pytest.raises(UnavailableError, match="another upload"):
        await send(updater, version)
    with pytest.raises(WaitTimeoutError, match=r"silent for 0\.2 s"):
        await first
    await load(updater, version)


async def test_a_second_upload_replaces_the_first_but_not_what_is_staged(
    updater: WeightUpdater, engine: FakeEngine, shm_run: ShmRun
) -> None:
    first = shm_run.write(1)
    await send(updater, first)
    await updater.stage(by_http(first))
    assert updater._held is not None
    path = updater._held.staged.path  # type: ignore[attr-defined]
    second = shm_run.write(1, arrays=tensors_of(99))
    await send(updater, second)
    np.testing.assert_equal(load_file(path), tensors_of(1))
    await updater.stage(by_http(second))
    await updater.commit(second.commit)
    assert updater.serving.checksum == second.checksum


@pytest.mark.parametrize("algorithm", HASHES)
async def test_other_bytes_or_other_tensors_than_the_manifest_s(
    updater: WeightUpdater, shm_run: ShmRun, algorithm: DigestAlgorithm
) -> None:
    version = shm_run.write(1, algorithm=algorithm)
    await send(updater, version, save(tensors_of(2)))
    with pytest.raises(InvalidInputError, match=algorithm):
        await updater.stage(by_http(version))
    await send(updater, version, save({"embed.weight": tensors_of(1)["embed.weight"]}))
    with pytest.raises(InvalidInputError, match=r"norm\.weight is not in the file"):
        await updater.stage(by_http(version))
    assert updater.staged_version is None


async def test_what_is_no_safetensors_file(updater: WeightUpdater, shm_run: ShmRun) -> None:
    version = shm_run.write(1)
    good = version.file.read_bytes()
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    for content in (
        b"\x80\x04\x95" + b"pickle" * 20,
        b"\xff" * 64,
        good + b"more",
        len(header).to_bytes(8, "little") + header + b"x" * 8,
        (20_000).to_bytes(8, "little") + b"[" * 20_000,
        (13).to_bytes(8, "little") + b'{"a":1,"a":2}',
    ):
        with pytest.raises(InvalidInputError):
            await send(updater, version, content)
    await load(updater, version)


async def test_more_than_the_model_can_need(
    updater: WeightUpdater, shm_run: ShmRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 15 * 4 + MAX_HEADER_BYTES
    with pytest.raises(TooLargeError, match=str(limit)):
        await updater.upload(Version(1, 1), pieces(b""), limit + 1)
    monkeypatch.setattr(updater._uploads, "_limit_bytes", 100)
    with pytest.raises(TooLargeError, match="over 100 bytes"):
        await send(updater, shm_run.write(1))


async def test_versions_before_the_serving_one_are_not_taken(
    updater: WeightUpdater, shm_run: ShmRun
) -> None:
    await load(updater, shm_run.write(5))
    with pytest.raises(ConflictError, match="older"):
        await send(updater, shm_run.write(4))


def test_what_a_killed_process_left_is_removed(shm_run: ShmRun, tmp_path: Path) -> None:
    settings = settings_of(shm_run.name, tmp_path)
    spool = Spool(settings)
    os.close(spool.open_draft())
    (spool.folder / "1-1.safetensors").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("stays")
    spool.new_folder("adapter-")
    again = Spool(settings)
    assert not again.folder.exists()
    assert (tmp_path / "elsewhere").read_text() == "stays"
    again.remove()


def test_a_folder_that_others_made_is_not_used(shm_run: ShmRun, tmp_path: Path) -> None:
    folder = spool_of(shm_run, tmp_path)
    (tmp_path / "theirs").mkdir()
    folder.symlink_to(tmp_path / "theirs")
    try:
        with pytest.raises(SettingsError, match="you alone"):
            Spool(settings_of(shm_run.name, tmp_path))
    finally:
        folder.unlink()


async def test_a_full_spool_says_so_and_takes_the_version_when_there_is_room(
    updater: WeightUpdater, shm_run: ShmRun
) -> None:
    version = shm_run.write(1)
    content = version.file.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))  # as on a full disk
    try:
        with pytest.raises(NoRoomError, match=r"spool folder .* has no room .*TMPDIR") as caught:
            await send(updater, version, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.status, caught.value.retryable) == (507, True)
    with pytest.raises(NotFoundError):
        await updater.stage(by_http(version))
    await load(updater, version)
    assert updater.serving.policy_version == 1


async def test_a_piece_stays_as_it_is_while_the_next_one_fills(
    updater: WeightUpdater, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written and hashed meanwhile."""
    monkeypatch.setattr(uploads, "_PIECE_BYTES", 10)
    content = bytes(range(64))
    for size in (3, 10, 64):
        whole, before, copy = b"", memoryview(b""), b""
        async for piece in updater._uploads._pieces(pieces(content, size)):
            assert before == copy
            before, copy = piece, bytes(piece)
            whole += copy
        assert whole == content


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5),
    sizes=st.lists(st.integers(1, 60), min_size=1),
)
def test_pieces_of_any_size_give_the_same_digests(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], sizes: list[int]
) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    content = save(arrays)
    path = tmp_path_factory.mktemp("incoming") / "file"
    with path.open("wb") as file:
        incoming = IncomingFile(file.fileno())
        start = 0
        while start < len(content):
            size = sizes[start % len(sizes)]
            incoming.feed(content[start : start + size])
            start += size
        header, digests = incoming.finish()
    assert path.read_bytes() == content
    assert header.keys() == digests.keys() == arrays.keys()
    for name, array in arrays.items():
        assert digests[name] == blake3(array.tobytes()).hexdigest()
