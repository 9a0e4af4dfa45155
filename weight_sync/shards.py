"""A version's file that several of the trainer's ranks write, each of them its own tensors.

    rank 0                                       the other writers
    makes the draft, says where it is  ───────▶  open it
    writes and digests its tensors               write and digest theirs
    adds their digests                 ◀───────  say what they have written, or why they could not
    writes the header, gives the file its name

The tensors' sizes are known beforehand, so every rank knows each tensor's place in the file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from pathlib import Path
from typing import TYPE_CHECKING

from services.errors import UnavailableError
from services.schemas.weights import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Written:
    """What one of the other ranks has written of a version."""

    entries: dict[str, TensorEntry] = field(default_factory=dict)
    """Its tensors' entries with their digests, by name."""
    error: str | None = None
    """Why it could not write them."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A version's tensors as one of several ranks gets them: a collective, which all exhaust.

    Those of the other ranks are on torch's `meta` device: they have shape and dtype alone.
    """

    tensors: "Iterable[tuple[str, Tensor]]"
    """In the order of the file."""
    num_bytes: int
    """What all of the version's tensors take."""
    draft: Future[Path] = field(default_factory=Future)
    """On rank 0: the file that all write to, once it is there."""
    others: Future[list[Written]] = field(default_factory=Future)
    """On rank 0: what ranks 1 and up have written, once all tensors are gathered."""

    def __iter__(self) -> "Iterator[tuple[str, Tensor]]":
        return iter(self.tensors)

    def entries_of_others(self) -> dict[str, TensorEntry]:
        """The entries of all tensors that other ranks have written; waits for them.

        Raises:
            UnavailableError: One could not write its tensors; the message names it.
        """
        entries: dict[str, TensorEntry] = {}
        for rank, written in enumerate(self.others.result(), start=1):
            if written.error is not None:
                raise UnavailableError(f"rank {rank} of the trainer: {written.error}")
            entries |= written.entries
        return entries


def deal(sizes: Mapping[str, int], writers: Sequence[int]) -> dict[str, int]:
    """The rank that writes each tensor; all ranks find the same.

    The largest first, each to the rank that has the fewest bytes so far.

    Args:
        sizes: Bytes of each tensor, by its name.
        writers: The ranks.
    """
    loads = [(0, rank) for rank in writers]
    heapify(loads)
    owners = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        load, owners[name] = loads[0]
        heapreplace(loads, (load + sizes[name], owners[name]))
    return owners
