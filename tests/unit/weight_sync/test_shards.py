"""A version's file that several ranks write: who writes what, and what a failure leaves."""

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.errors import UnavailableError, WaitTimeoutError
from services.schemas.weights import TensorEntry
from services.waiting import RoomWait
from weight_sync.file_format import num_bytes, write_part, write_weights
from weight_sync.shards import Shard, Written, deal

TENSORS = {
    "model.a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "model.scalar": torch.tensor(2.5),
    "model.empty": torch.zeros(0, 4),
    "model.transposed": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t(),
    "model.half": torch.ones(5, 2, dtype=torch.float16),
    "modèle.ü": torch.ones(1),
}
SIZES = {name: tensor.nbytes for name, tensor in TENSORS.items()}
Entries = dict[str, TensorEntry]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "shared/1-2.safetensors"


@pytest.fixture
def room(tmp_path: Path) -> RoomWait:
    return RoomWait(tmp_path, timeout_s=0.0)


def seen_by(rank: int, num_ranks: int) -> Iterator[tuple[str, Tensor]]:
    owners = deal(SIZES, range(num_ranks))
    for name, tensor in TENSORS.items():
        yield name, tensor if owners[name] == rank else tensor.to("meta")


def written_by(num_ranks: int, file: Path, room: RoomWait) -> tuple[bytes, Entries]:
    shard = Shard(seen_by(0, num_ranks), sum(SIZES.values()))
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_weights, file, shard, room, shard=shard)
        draft = shard.draft.result()
        shard.others.set_result(
            [
                Written(write_part(draft, seen_by(rank, num_ranks), room, durable=rank == 1))
                for rank in range(1, num_ranks)
            ]
        )
        entries = writing.result()
    return file.read_bytes(), entries


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_many_ranks_write_what_one_writes(num_ranks: int, file: Path, room: RoomWait) -> None:
    alone = write_weights(file, TENSORS.items(), room)
    content = file.read_bytes()
    together, entries = written_by(num_ranks, file, room)
    assert together == content
    assert list(entries.items()) == list(alone.items())
    assert num_bytes(entries.values()) == sum(SIZES.values())


def test_tensors_are_dealt_evenly_and_each_to_one_rank() -> None:
    layer = {"q": 16, "k": 2, "v": 2, "o": 16, "gate": 88, "up": 88, "down": 88, "norm": 1}
    sizes = {"embedding": 600} | {f"{i}.{n}": size for i in range(28) for n, size in layer.items()}
    owners = deal(sizes, [0, 1, 4, 5])
    assert owners.keys() == sizes.keys()
    loads = {r: sum(sizes[n] for n, o in owners.items() if o == r) for r in (0, 1, 4, 5)}
    assert sum(loads.values()) == sum(sizes.values())
    assert max(loads.values()) - min(loads.values()) <= 2
    assert deal(dict(sizes), [0, 1, 4, 5]) == owners
    assert deal({"only": 3, "empty": 0}, [0, 1, 2])["only"] == 0


@pytest.mark.parametrize(
    ("others", "match"),
    [
        ([Written(), Written(error="no space on node7")], "rank 2 of the trainer: no space on nod"),
        ([Written(), Written()], "no rank has written model.scalar"),
    ],
)
def test_a_rank_that_fails_leaves_no_file(
    others: list[Written], match: str, file: Path, room: RoomWait
) -> None:
    shard = Shard(seen_by(0, 3), sum(SIZES.values()))
    shard.others.set_result(others)
    with pytest.raises(UnavailableError, match=match):
        write_weights(file, shard, room, shard=shard)
    assert not list(file.parent.iterdir())


def test_a_late_rank_is_waited_for(file: Path, room: RoomWait) -> None:
    asked = threading.Event()

    class Asked(Future[list[Written]]):
        def result(self, timeout: float | None = None) -> list[Written]:
            asked.set()
            return super().result(timeout)

    late = Asked()
    shard = Shard(seen_by(0, 2), sum(SIZES.values()), others=late)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_weights, file, shard, room, shard=shard)
        assert asked.wait(30)
        assert [each.name for each in file.parent.iterdir()] == ["1-2.draft"]
        late.set_exception(RuntimeError("rank 1 is gone"))
        with pytest.raises(RuntimeError, match="rank 1 is gone"):
            writing.result()
    assert not list(file.parent.iterdir())


def test_a_draft_that_is_not_there_is_said(file: Path, room: RoomWait) -> None:
    with pytest.raises(
        UnavailableError, match=r"cannot write weights to .*1-2.draft: No such file"
    ):
        write_part(file.with_suffix(".draft"), seen_by(1, 2), room, durable=False)


def test_nobody_waits_for_room_once_the_run_is_to_stop(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    file.parent.mkdir()
    draft = file.with_suffix(".draft")
    draft.touch()
    room = RoomWait(file.parent, 3600, stop_asked=lambda: True)
    with pytest.raises(WaitTimeoutError, match="make room there"):
        write_part(draft, seen_by(1, 2), room, durable=False)
