"""Follows a file of JSON lines that another process appends to, and at a resume cuts back."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

TAIL_BYTES = 1 << 18
"""Read of a file that is new to us: its last hundred steps or so."""


class NewRows(NamedTuple):
    """What has come since the last look."""

    rows: list[dict[str, Any]]
    cut: bool
    """Whether the file is new or was cut: these rows then stand in place of all earlier ones."""


class StepFile:
    """`metrics.jsonl` as it grows; each line is read once.

    Args:
        path: It need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = -1
        self._offset = 0

    def read(self) -> NewRows:
        """The whole lines since the last look. A line that is not JSON is left out.

        Raises:
            OSError: The file cannot be read; one that is not there is empty.
        """
        try:
            stream = self._path.open("rb")
        except FileNotFoundError:
            self._offset = 0
            return NewRows([], cut=self._forget(inode=-1))
        with stream:
            status = os.fstat(stream.fileno())
            cut = self._forget(status.st_ino) or status.st_size < self._offset
            if cut:  # a line of which this is the middle is no JSON
                self._offset = max(0, status.st_size - TAIL_BYTES)
            stream.seek(self._offset)
            # The last line may be half written: it is whole at one of the next looks.
            whole = stream.read().rpartition(b"\n")[0]
        self._offset += len(whole) + bool(whole)
        rows = [row for line in whole.splitlines() if (row := _row(line)) is not None]
        return NewRows(rows, cut)

    def _forget(self, inode: int) -> bool:
        """Whether this is another file than the last time; a resume puts one in its place."""
        changed, self._inode = inode != self._inode, inode
        return changed


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
