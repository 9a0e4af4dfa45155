"""The index of a run's groups: a short line for each, so that nobody reads all answers to find one.

Each rank appends to its own `rollouts/index.rankR.jsonl`, steps in their order: hosts of one run
share no lock. A reader merges the files from their ends, in blocks: its memory does not grow with
the run.
"""

import heapq
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
from pydantic import ValidationError
from pydantic_core import to_json

from services.errors import InvalidInputError, NotFoundError
from services.run_folder.backwards import bisect_lines, blocks_backwards
from services.run_folder.index_line import EVERY_GROUP, IndexLine, IndexNumbers, RolloutFilter
from services.run_folder.paths import RunFolder
from services.run_folder.records import RolloutRecord, parse_record, unpacked

Sort = Literal["newest", "oldest", "highest", "lowest", "widest"]
"""By step and place in the data order; by mean reward; by its standard deviation, largest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPage:
    """Some lines of the index."""

    lines: list[IndexLine]
    cursor: str | None
    """Gives the page after this one; None where this is the last."""
    scanned: int
    """Lines that were looked at."""
    passed_over: int
    """Those that are half written, damaged, or of a later release."""


_Key = tuple[float, ...]
"""Where a line stands in an order: values, then what tells lines of equal values apart."""
_Placed = tuple[_Key, bytes]
"""A line that fits, unread, so that a long index costs little for each."""


class RolloutIndex:
    """Finds groups of a run, while it trains or long after.

    Example: `RolloutIndex(Path("runs/demo")).page(RolloutFilter(state="dead"), limit=20).lines`
    """

    def __init__(self, run: Path) -> None:
        """Nothing is read yet.

        Args:
            run: The run's folder.
        """
        self._folder = RunFolder(run).rollouts

    @property
    def exists(self) -> bool:
        """Whether the run has an index: those of earlier releases have none."""
        return bool(self._files())

    @property
    def last_step(self) -> int | None:
        """The newest step of which there is a line."""
        lines = self.page(limit=1).lines
        return lines[0].step if lines else None

    def page(
        self,
        wanted: RolloutFilter = EVERY_GROUP,
        sort: Sort = "newest",
        cursor: str | None = None,
        limit: int = 50,
    ) -> IndexPage:
        """Some lines that fit, in an order.

        `newest` reads from the end, and no more than it needs; every other order reads all lines
        between the filter's steps.

        Args:
            wanted: Which.
            sort: In which order.
            cursor: That of the page before this one, of the same filter and order.
            limit: The most lines.

        Raises:
            InvalidInputError: The cursor is none of a page in this order.
        """
        if wanted.text is not None:
            wanted = replace(wanted, step_from=max(wanted.step_from or 0, self.oldest_kept))
        after, most = _read_cursor(cursor, sort), limit
        while True:
            scan = _Scan(wanted, sort, after)
            found = self._first(scan, wanted.text, sort, most + 1)
            read = [(key, line) for key, text in found if (line := scan.read(text)) is not None]
            if len(read) > limit or len(found) <= most:
                break
            most = 2 * most + 1  # damaged lines took the places of others
        return IndexPage(
            lines=[line for _, line in read[:limit]],
            cursor=":".join(map(repr, read[limit - 1][0])) if len(read) > limit else None,
            scanned=scan.scanned,
            passed_over=scan.passed_over,
        )

    def _first(self, scan: "_Scan", text: str | None, sort: Sort, most: int) -> list[_Placed]:
        """The first lines of an order that fit, unread."""
        with ExitStack() as stack:
            ranks = [scan.lines(stack.enter_context(f.open("rb")), _rank(f)) for f in self._files()]
            lines = heapq.merge(*ranks, key=_key) if sort == "newest" else chain(*ranks)
            fitting = (placed for placed in lines if self._has_text(scan, placed[1], text))
            if sort == "newest":
                return list(islice(fitting, most))
            return heapq.nsmallest(most, fitting, key=_key)

    def read_record(self, line: IndexLine) -> RolloutRecord:
        """The group of a line, whole.

        Raises:
            NotFoundError: It is gone, or there was no answer to keep; says why.
            InvalidInputError: It is damaged, or of a later release.
        """
        record = parse_record(self._read(line), _place(line))
        if record.rollout.group_id != line.group_id:
            raise NotFoundError(_gone(line))
        return record

    def _read(self, line: IndexLine) -> bytes:
        if line.file is None:
            raise NotFoundError(f"no answer of {line.group_id} ever came: {line.reason}")
        try:
            with (self._folder / line.file).open("rb") as stream:
                if line.offset + line.length > os.fstat(stream.fileno()).st_size:
                    raise InvalidInputError(
                        f"{line.file} is cut, or the index line of {line.group_id} is damaged: the "
                        "file ends before the group does"
                    )
                stream.seek(line.offset)
                body = stream.read(line.length)
        except FileNotFoundError:
            raise NotFoundError(_gone(line)) from None
        return unpacked(body, _place(line))

    def _has_text(self, scan: "_Scan", entry: bytes, text: str | None) -> bool:
        if text is None:
            return True
        if (line := scan.read(entry)) is None:
            return False
        try:
            raw = self._read(line).lower()
            if text.isascii() and to_json(text)[1:-1].lower() not in raw:  # most need no parsing
                return False
            answers = self.read_record(line).rollout.completions
        except (NotFoundError, InvalidInputError):
            return False
        return any(text.casefold() in answer.text.casefold() for answer in answers)

    @property
    def oldest_kept(self) -> int:
        """The oldest step whose groups are still there; where there are none, one of no line."""
        names = (file.name.partition(".")[0] for file in self._folder.glob("step-*.jsonl*"))
        steps = (name.removeprefix("step-") for name in names)
        return min((int(step) for step in steps if step.isdecimal()), default=1 << 60)

    def _files(self) -> list[Path]:
        files = self._folder.glob("index.rank*.jsonl")
        return sorted(file for file in files if _INDEX_FILE.fullmatch(file.name))


class _Scan:
    """One look through the index, and what it counts."""

    def __init__(self, wanted: RolloutFilter, sort: Sort, after: _Key | None) -> None:
        self._wanted = wanted
        self._needles = wanted.needles
        self._sort = sort
        self._after = after
        last = wanted.step_to
        if after is not None and sort == "newest":  # the page before ended within this step
            last = int(-after[0]) if last is None else min(last, int(-after[0]))
        self._last_step = last
        self.scanned = 0
        self.passed_over = 0

    def lines(self, stream: BinaryIO, rank: int) -> Iterator[_Placed]:
        """The lines of a rank that fit and come after the cursor, last ones first."""
        for block in blocks_backwards(stream, *self._bounds(stream)):
            if not all(needle in block.text for needle in self._needles):
                self.scanned += block.num_lines
                continue
            for offset, text in block.lines_backwards():
                self.scanned += 1
                if not all(needle in text for needle in self._needles):
                    continue
                if (numbers := _numbers(text)) is None:
                    self.passed_over += 1
                    continue
                key = (*_VALUES[self._sort](numbers), rank, -offset)
                if (self._after is None or key > self._after) and self._fits(numbers, text):
                    yield key, text

    def read(self, text: bytes) -> IndexLine | None:
        """A whole line; None where it cannot be read, which is counted."""
        try:
            return IndexLine.model_validate_json(text)
        except ValidationError:
            self.passed_over += 1
            return None

    def _fits(self, numbers: IndexNumbers, text: bytes) -> bool:
        if not self._wanted.fits_numbers(numbers):
            return False
        if not self._wanted.needs_more:
            return True
        line = self.read(text)
        return line is not None and self._wanted.fits(line)

    def _bounds(self, stream: BinaryIO) -> tuple[int, int]:
        """The offsets between which all lines are that may fit."""
        start, end = 0, stream.seek(0, os.SEEK_END)
        first, last = self._wanted.step_from, self._last_step
        if last is not None:
            _, end = bisect_lines(stream, end, partial(_is_later, step=last, unread=False))
        if first is not None:
            start, _ = bisect_lines(stream, end, partial(_is_later, step=first - 1, unread=True))
        return start, end


_VALUES: dict[Sort, Callable[[IndexNumbers], _Key]] = {
    "newest": lambda line: (-line.step, -line.position),
    "oldest": lambda line: (line.step, line.position),
    "highest": lambda line: (_or_last(line.mean, -1), -line.step, -line.position),
    "lowest": lambda line: (_or_last(line.mean, 1), -line.step, -line.position),
    "widest": lambda line: (_or_last(line.std, -1), -line.step, -line.position),
}


def _or_last(value: float | None, sign: int) -> float:
    return math.inf if value is None else sign * value


def _key(placed: _Placed) -> _Key:
    return placed[0]


_INDEX_FILE = re.compile(r"index\.rank[0-9]{1,9}\.jsonl")
"""A person's copy of one has another name."""


def _rank(file: Path) -> int:
    return int(file.name.split(".")[1].removeprefix("rank"))


def _numbers(text: bytes) -> IndexNumbers | None:
    try:
        return _NUMBERS.decode(text)
    except msgspec.MsgspecError:
        return None


def _is_later(text: bytes, *, step: int, unread: bool) -> bool:
    """Whether a line is of a later step; `unread` of one that cannot be read."""
    numbers = _numbers(text)
    return unread if numbers is None else numbers.step > step


_NUMBERS = msgspec.json.Decoder(IndexNumbers)


def _read_cursor(cursor: str | None, sort: Sort) -> _Key | None:
    if cursor is None:
        return None
    try:
        key = tuple(map(float, cursor.split(":")))
    except ValueError:
        key = ()
    # A group without rewards stands at infinity; all else that a key holds is a whole number.
    in_steps = sort in ("newest", "oldest")
    if len(key) != (4 if in_steps else 5) or not all(map(math.isfinite, key[not in_steps :])):
        raise InvalidInputError(f"{cursor!r:.80} is no cursor of a page of groups, {sort} first")
    return key


def _place(line: IndexLine) -> str:
    return f"{line.file} from byte {line.offset}"


def _gone(line: IndexLine) -> str:
    return (
        f"the answers of {line.group_id} of step {line.step} are gone: a run keeps those of its "
        "newest steps (records.keep_rollouts)"
    )
