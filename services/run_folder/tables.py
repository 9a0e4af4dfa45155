"""The rows of a run's tables, and how to follow a file of them.

Example of a row of `metrics.jsonl`: `{"step": 3, "num_steps": 100, "reward_mean": 2.1, …}`.
`docs/metrics.md` explains each number.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

TAIL_BYTES = 1 << 18
"""The last hundred rows or so of `metrics.jsonl`."""


class StepRow(TypedDict, total=False):
    """A row of `metrics.jsonl`: one step. A row may hold more numbers than are named here.

    SFT's rows, and those of earlier releases, hold fewer.
    """

    step: int
    num_steps: int
    policy_version: int
    time: float
    """Unix time of the step's end."""
    reward_mean: float
    reward_terms: dict[str, float]
    failure_rate: float
    policy_lag_mean: float
    policy_lag_max: int
    num_groups: int
    num_stale: int
    num_dead: int
    num_replaced: int
    num_servers: int
    num_tokens: int
    tokens_per_s: float
    loss: float
    learning_rate: float
    sampler_idle_fraction: float | None
    preparation_s: float
    phases_s: dict[str, float]
    grad_norm: float
    mismatch_kl: float
    clip_fraction: float


class LedgerRow(TypedDict):
    """A row of `ledger.jsonl`: what became of the groups of one step, by their ids."""

    step: int
    policy_version: int
    group_ids: list[str]
    stale: list[str]
    dead: list[str]
    skipped: list[str]
    no_spread: list[str]


class EvaluationRow(TypedDict, total=False):
    """A row of `evaluations.jsonl`: one version, evaluated on held-out images.

    It also holds the scores of `evaluation.of_a_run.heldout`, of which these are some.
    """

    step: int
    """The version."""
    policy_version_oldest: int | None
    policy_version_newest: int | None
    """The versions that answered."""
    time: float
    seconds: float
    num_images: int
    failure_rate: float
    triplet_recall: float
    triplet_f1: float
    object_f1: float
    intervals: dict[str, tuple[float, float]]
    """95 % by bootstrap over images, by the name of a score; earlier releases wrote none."""


AnyRow = TypeVar("AnyRow", bound=Mapping[str, Any])


class NewRows(NamedTuple, Generic[AnyRow]):
    """The rows that came since the last read."""

    rows: list[AnyRow]
    cut: bool
    """Whether the file is new or was cut: these rows then replace all earlier ones."""


class TableFollower(Generic[AnyRow]):
    """Follows a file of JSON lines that another process appends to, and at a resume cuts back.

    Example: `TableFollower[StepRow](folder.metrics).read().rows[-1]["reward_mean"]`

    Args:
        file: It need not exist yet.
        tail_bytes: Where a file is new or was cut, only so much of its end is read; None reads
            the whole file.
    """

    def __init__(self, file: Path, *, tail_bytes: int | None = None) -> None:
        self._file = file
        self._tail_bytes = tail_bytes
        self._inode = -1
        self._offset = 0
        self.num_unreadable = 0
        """Lines that were passed over, of the file as it is now."""
        self.is_behind = False
        """Whether `at_most` ended the last read before the file's end."""
        self.ends_in_half_a_line = False
        """Whether a line that had no end yet was left at the last read."""

    def read(self, at_most: int | None = None) -> NewRows[AnyRow]:
        """The rows since the last call. A line that is not a JSON object is passed over.

        Args:
            at_most: Bytes, for a reader that has not the memory for all rows at once: while
                `is_behind`, another call goes on. None reads all that is new.

        Raises:
            OSError: The file is there and cannot be read.
        """
        try:
            stream = self._file.open("rb")
        except FileNotFoundError:
            self._offset, self.is_behind, self.ends_in_half_a_line = 0, False, False
            return NewRows([], cut=self._is_other_file(-1))
        with stream:
            status = os.fstat(stream.fileno())
            cut = self._is_other_file(status.st_ino) or status.st_size < self._offset
            if cut:  # in the middle of a line, the rest of that line is not JSON
                tail_bytes = status.st_size if self._tail_bytes is None else self._tail_bytes
                self._offset = max(0, status.st_size - tail_bytes)
                self.num_unreadable = 0
            stream.seek(self._offset)
            read = stream.read(at_most)
            if at_most is not None and b"\n" not in read:
                read += stream.readline()
            # The last line may be half written: a later call reads it whole.
            whole, _, half = read.rpartition(b"\n")
        self._offset += len(whole) + bool(whole)
        self.is_behind = bool(whole) and at_most is not None and len(read) >= at_most
        self.ends_in_half_a_line = bool(half) and not self.is_behind
        rows = [_row(line) for line in whole.splitlines()]
        self.num_unreadable += rows.count(None)
        return NewRows([row for row in rows if row is not None], cut)

    def _is_other_file(self, inode: int) -> bool:
        """Whether it is another file than at the last read; a resume replaces the file."""
        changed, self._inode = inode != self._inode, inode
        return changed


def _row(line: bytes) -> Any:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
