"""The file of a version: what others read from it, and what a failure leaves."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from services.errors import InvalidInputError, UnavailableError
from trainer.transports import weight_file
from trainer.transports.weight_file import write_weights

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


@pytest.mark.parametrize("durable", [False, True])
def test_the_safetensors_library_reads_the_same_tensors(file: Path, durable: bool) -> None:
    entries = write_weights(file, TENSORS.items(), durable=durable)
    read = load_file(file)
    assert list(entries) == list(TENSORS)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(read[name], tensor)
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert entries[name].sha256 == hashlib.sha256(raw).hexdigest()
        assert (entries[name].shape, entries[name].dtype) == (
            list(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
        )
    assert file.stat().st_mode & 0o777 == 0o600


def test_many_tensors_come_one_at_a_time(file: Path) -> None:
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

    write_weights(file, produce())
    assert max(alive) <= 6
    assert torch.equal(load_file(file)["t49"], torch.full((100,), 49.0))


def test_what_cannot_be_written_leaves_nothing(file: Path) -> None:
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.ones(3)
        raise RuntimeError("the gather failed")

    with pytest.raises(RuntimeError, match="gather"):
        write_weights(file, broken())
    with pytest.raises(UnavailableError, match="No such file"):
        write_weights(file.parent / "missing" / "1-2.safetensors", TENSORS.items())
    assert not list(file.parent.iterdir())


def test_a_full_disk_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(UnavailableError, match="No space left"):
        write_weights(file, TENSORS.items())
    assert not list(file.parent.iterdir())


def test_names_that_do_not_fit_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_file, "_HEADER_BYTES", 64)
    with pytest.raises(InvalidInputError, match="6 tensors"):
        write_weights(file, TENSORS.items())
    assert not list(file.parent.iterdir())
