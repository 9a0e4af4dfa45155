"""The file of a version: what others read from it, and what a failure leaves."""

import errno
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file
from torch import Tensor

from services import waiting
from services.errors import InvalidInputError, UnavailableError, WaitTimeoutError
from services.waiting import RoomWait
from weight_sync import file_format
from weight_sync.file_format import write_weights

TENSORS = {
    "model.a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "model.scalar": torch.tensor(2.5),
    "model.empty": torch.zeros(0, 4),
    "model.transposed": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t(),
    "model.half": torch.ones(5, 2, dtype=torch.float16),
    "modèle.ü": torch.ones(1),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "1-2.safetensors"


@pytest.fixture
def room(tmp_path: Path) -> RoomWait:
    return RoomWait(tmp_path, timeout_s=0.0)


@pytest.mark.parametrize("durable", [False, True])
def test_the_safetensors_library_reads_the_same_tensors(
    file: Path, room: RoomWait, durable: bool
) -> None:
    entries = write_weights(file, TENSORS.items(), room, durable=durable)
    read = load_file(file)
    assert list(entries) == list(TENSORS)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(read[name], tensor)
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert entries[name].digest == blake3(raw).hexdigest()
        assert (entries[name].shape, entries[name].dtype) == (
            list(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
        )
    assert file.stat().st_mode & 0o777 == 0o600


def test_many_tensors_come_one_at_a_time(file: Path, room: RoomWait) -> None:
    """At most as many are held as threads write."""
    alive: list[int] = []
    held = 0

    class Counted(torch.Tensor):  # type: ignore[misc]
        def __del__(self) -> None:
            nonlocal held
            held -= 1

    def produce() -> Iterator[tuple[str, Tensor]]:
        nonlocal held
        for i in range(50):
            held += 1
            alive.append(held)
            yield f"t{i}", torch.full((100,), float(i)).as_subclass(Counted)

    write_weights(file, produce(), room)
    assert max(alive) <= 6
    assert torch.equal(load_file(file)["t49"], torch.full((100,), 49.0))


def test_what_cannot_be_written_leaves_nothing(file: Path, room: RoomWait) -> None:
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.ones(3)
        raise RuntimeError("the gather failed")

    with pytest.raises(RuntimeError, match="gather"):
        write_weights(file, broken(), room)
    with pytest.raises(UnavailableError, match="No such file"):
        write_weights(file.parent / "missing/too/1-2.safetensors", TENSORS.items(), room)
    assert not list(file.parent.iterdir())


def test_a_disk_that_stays_full_ends_the_wait(
    file: Path, room: RoomWait, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(waiting, "PAUSE_S", 0.001)
    with pytest.raises(WaitTimeoutError, match=r"No space left.*make room there"):
        write_weights(file, TENSORS.items(), room)
    assert not list(file.parent.iterdir())


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes a part of each tensor, then nothing, then the rest: no byte is lost or twice."""
    written, calls = os.pwrite, Counter[int]()

    def pwrite(descriptor: int, raw: memoryview, start: int) -> int:
        calls[threading.get_ident()] += 1
        if calls[threading.get_ident()] % 3 == 2:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return written(descriptor, raw[: max(1, len(raw) // 2)], start)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(waiting, "PAUSE_S", 0.001)
    write_weights(file, TENSORS.items(), RoomWait(file.parent, timeout_s=60))
    read = load_file(file)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert f"{file.parent} has no room (Disk quota exceeded" in caplog.text


def test_names_that_do_not_fit_are_refused(
    file: Path, room: RoomWait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_format, "HEADER_BYTES", 64)
    with pytest.raises(InvalidInputError, match="6 tensors"):
        write_weights(file, TENSORS.items(), room)
    assert not list(file.parent.iterdir())


def test_a_folder_that_another_trainer_took_away_is_made_again(tmp_path: Path) -> None:
    file = tmp_path / "gone/1-3.safetensors"
    write_weights(file, [("a", torch.ones(2))], RoomWait(tmp_path, 1))
    assert file.stat().st_size > 8
    assert file.parent.stat().st_mode & 0o777 == 0o700
