"""Uploads: what is kept of them, and what is staged from them."""

import asyncio
import fcntl
import os
import resource
import signal
import socket
import threading
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
    ClientGoneError,
    ConflictError,
    InvalidInputError,
    NoRoomError,
    NotFoundError,
    SettingsError,
    TooLargeError,
    UnavailableError,
)
from services.schemas.weights import DigestAlgorithm, StageRequest, Version
from tests.shm_versions import HASHES, ShmRun, ShmVersion, tensors_of
from tests.updaters import Content, ToyEngine, settings_of, updater_of
from weight_sync.file_format import MAX_HEADER_BYTES
from weight_sync.transports.uploads import spool
from weight_sync.transports.uploads.incoming import IncomingFile
from weight_sync.transports.uploads.spool import Spool, SpoolFile, spool_folder
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
    await updater.upload(manifest.version, Content(content))


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
    here.new_file("upload.draft").release()
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


async def test_a_version_gets_the_pages_of_the_one_that_goes(
    updater: WeightUpdater, shm_run: ShmRun, tmp_path: Path
) -> None:
    """Whether it is larger or smaller."""
    folder, files = spool_of(shm_run, tmp_path), set()
    for number, width in enumerate((4, 4, 9, 1), start=1):
        arrays = {"t": np.full(width, number, np.float32)}
        await updater.upload(Version(1, number), Content(save(arrays)))
        file = folder / f"1-{number}.safetensors"
        np.testing.assert_equal(load_file(file), arrays)
        files.add(file.stat().st_ino)
    assert len(files) == 2


def test_who_opens_a_file_while_it_is_looked_at_ends_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells it who has the lease, by SIGIO if nothing else is said, which ends it."""
    file, told = SpoolFile(tmp_path / "file"), list[int]()
    control, before = (
        fcntl.fcntl,
        signal.signal(signal.SIGIO, lambda number, _: told.append(number)),
    )

    def opened_meanwhile(descriptor: int, command: int, argument: int) -> int:
        if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_UNLCK):
            with pytest.raises(BlockingIOError):
                os.open(file.path, os.O_RDONLY | os.O_NONBLOCK)
        return control(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", opened_meanwhile)
    try:
        file.is_shared()
        assert told == []
    finally:
        signal.signal(signal.SIGIO, before)
        file.remove()


def test_pages_that_cannot_be_written_again_are_an_error_and_not_the_process_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full btrfs. Here the file has become too short, which takes a write the same way."""
    monkeypatch.setattr(spool, "copies_on_write", lambda descriptor: True)
    file = SpoolFile(tmp_path / "file")
    for piece in file.pieces(10_000):
        piece[:] = b"1" * len(piece)
    os.ftruncate(file.descriptor, 5000)
    with pytest.raises(OSError, match="No space left"):
        next(file.pieces(10_000))
    file.remove()


async def test_a_spool_that_others_have_emptied_takes_versions(
    updater: WeightUpdater, shm_run: ShmRun, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        await load(updater, shm_run.write(number))
        for file in spool_of(shm_run, tmp_path).iterdir():
            file.unlink()


async def test_what_is_still_open_is_not_written_over(
    updater: WeightUpdater, shm_run: ShmRun
) -> None:
    """Two later uploads come while the first one is staged: it could be committed yet."""
    first = shm_run.write(1)
    await send(updater, first)
    await updater.stage(by_http(first))
    for number in (2, 3, 4):
        await send(updater, shm_run.write(number))
    assert updater._held is not None
    np.testing.assert_equal(
        load_file(updater._held.staged.path),  # type: ignore[attr-defined]
        tensors_of(1),
    )


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


class Slow(Content):
    """Gives 50 bytes, and the rest once it is stopped or let go."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.waits, self._goes_on, self._is_stopped = threading.Event(), threading.Event(), False

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        if self.tell() == 0:
            return super().readinto(buffer[:50])
        self.waits.set()
        self._goes_on.wait()
        if self._is_stopped:
            raise ClientGoneError("gone")
        return super().readinto(buffer)

    def let_go(self) -> None:
        self._goes_on.set()

    def stop(self) -> None:
        self._is_stopped = True
        self._goes_on.set()


async def test_nothing_is_kept_when_the_client_goes_away(
    updater: WeightUpdater, shm_run: ShmRun, tmp_path: Path
) -> None:
    version = shm_run.write(1)
    broken = Slow(version.file.read_bytes())
    broken.stop()
    with pytest.raises(ClientGoneError, match="gone"):
        await updater.upload(Version(1, 1), broken)
    assert files_of(spool_of(shm_run, tmp_path)) == []
    await load(updater, version)


async def test_an_upload_that_is_given_up_ends_its_thread_and_leaves_nothing(
    updater: WeightUpdater, shm_run: ShmRun, tmp_path: Path
) -> None:
    version = shm_run.write(1)
    slow = Slow(version.file.read_bytes())
    uploading = asyncio.create_task(updater.upload(Version(1, 1), slow))
    await asyncio.to_thread(slow.waits.wait)
    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    assert slow.closed
    assert files_of(spool_of(shm_run, tmp_path)) == []
    await load(updater, version)


async def test_uploads_come_one_after_the_other(updater: WeightUpdater, shm_run: ShmRun) -> None:
    version = shm_run.write(1)
    slow = Slow(version.file.read_bytes())
    first = asyncio.create_task(updater.upload(Version(1, 1), slow))
    await asyncio.to_thread(slow.waits.wait)
    with pytest.raises(UnavailableError, match="another upload"):
        await send(updater, version)
    slow.let_go()
    await first
    await updater.stage(by_http(version))


async def test_an_upload_that_has_fallen_silent_makes_way(
    updater: WeightUpdater, shm_run: ShmRun
) -> None:
    version = shm_run.write(1)
    silent = Slow(version.file.read_bytes())
    first = asyncio.create_task(updater.upload(Version(1, 1), silent))
    await asyncio.to_thread(silent.waits.wait)
    silent.silent_s = 5.0
    await load(updater, version)
    with pytest.raises(ClientGoneError):
        await first


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


async def test_more_than_the_model_can_need(updater: WeightUpdater) -> None:
    limit = 15 * 4 + MAX_HEADER_BYTES
    with pytest.raises(TooLargeError, match=str(limit)):
        await updater.upload(Version(1, 1), Content(b"", limit + 1))


async def test_versions_before_the_serving_one_are_not_taken(
    updater: WeightUpdater, shm_run: ShmRun
) -> None:
    await load(updater, shm_run.write(5))
    with pytest.raises(ConflictError, match="older"):
        await send(updater, shm_run.write(4))


def test_what_a_killed_process_left_is_removed(shm_run: ShmRun, tmp_path: Path) -> None:
    settings = settings_of(shm_run.name, tmp_path)
    spool = Spool(settings)
    spool.new_file("upload.draft").release()
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


@pytest.mark.parametrize("size", [1, 64, 100])
async def test_a_file_of_many_pieces(
    updater: WeightUpdater, shm_run: ShmRun, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A piece is hashed while the next one comes, into another buffer."""
    monkeypatch.setattr(spool, "_PIECE_BYTES", size)
    version = shm_run.write(1)
    await send(updater, version)
    await updater.stage(by_http(version))
    assert updater._held is not None
    np.testing.assert_equal(
        load_file(updater._held.staged.path),  # type: ignore[attr-defined]
        tensors_of(1),
    )


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5),
    sizes=st.lists(st.integers(1, 60), min_size=1),
)
def test_pieces_of_any_size_give_the_same_digests(
    shapes: list[list[int]], sizes: list[int]
) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    content = memoryview(save(arrays))
    incoming = IncomingFile()
    start = 0
    while start < len(content):
        size = sizes[start % len(sizes)]
        incoming.feed(content[start : start + size])
        start += size
    header, digests = incoming.finish()
    assert header.keys() == digests.keys() == arrays.keys()
    for name, array in arrays.items():
        assert digests[name] == blake3(array.tobytes()).hexdigest()
