"""The numbers of a run's rows as curves of bounded size, brought up to date as the file grows."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from console.reading.samples import finite
from services.run_folder import TableFollower

MAX_POINTS = 1024
"""Points of a curve: above that, two neighbouring points become one."""
_MAX_KEYS = 400
_CHUNK_BYTES = 1 << 20
"""Rows of so much of a file are in memory at a time."""
NUM_RECENT = 20
"""Last rows, which are kept whole."""
_DIGITS = 5
"""Digits of a number on the way to the browser: more than a screen shows."""
Row = Mapping[str, Any]


class _Curve:
    """Sum, count, least and greatest of a number, for each point."""

    def __init__(self) -> None:
        self.total = np.zeros(MAX_POINTS)
        self.count = np.zeros(MAX_POINTS, dtype=np.int32)
        self.low = np.full(MAX_POINTS, np.inf)
        self.high = np.full(MAX_POINTS, -np.inf)

    def add(self, points: list[int], values: list[float]) -> None:
        """Values of rows, each with the point that it belongs to."""
        at, found = np.array(points), np.array(values)
        np.add.at(self.total, at, found)
        np.add.at(self.count, at, 1)
        np.minimum.at(self.low, at, found)
        np.maximum.at(self.high, at, found)

    def halve(self) -> None:
        half = MAX_POINTS // 2
        for array, merge, empty in (
            (self.total, np.add, 0.0),
            (self.count, np.add, 0),
            (self.low, np.minimum, np.inf),
            (self.high, np.maximum, -np.inf),
        ):
            array[:half] = merge(array[0::2], array[1::2])
            array[half:] = empty


class Curves:
    """The curves of one file; its memory does not grow with the file.

    A point is the mean of `rows_per_point` rows that follow each other, with their least and their
    greatest value.

    Args:
        file: `metrics.jsonl` or `evaluations.jsonl` of a run; it need not exist yet.
    """

    def __init__(self, file: Path) -> None:
        self._follower = TableFollower[Row](file)
        self._begin()

    def _begin(self) -> None:
        self._curves: dict[str, _Curve] = {}
        self.num_rows = 0
        self.rows_per_point = 1
        self.recent: deque[Row] = deque(maxlen=NUM_RECENT)
        self.num_stepless = 0
        """Rows that say no step, and are left out: another release's."""
        self.num_repeated = 0
        """Rows whose step is not after the one before: a second writer."""

    def update(self) -> bool:
        """Read what is new; whether that replaces all that was there.

        Raises:
            OSError: The file is there and cannot be read.
        """
        replaced = False
        while True:
            rows, cut = self._follower.read(_CHUNK_BYTES)
            if cut:
                self._begin()
                replaced = True
            rows = self._with_step(rows)
            while rows:
                if self.num_rows == MAX_POINTS * self.rows_per_point:
                    self._halve()
                room = MAX_POINTS * self.rows_per_point - self.num_rows
                self._add(rows[:room])
                rows = rows[room:]
            if not self._follower.is_behind:
                return replaced

    @property
    def num_unreadable(self) -> int:
        """Lines of the file that are no JSON objects."""
        return self._follower.num_unreadable

    @property
    def ends_in_half_a_line(self) -> bool:
        """Whether the file's last line had no end when it was read."""
        return self._follower.ends_in_half_a_line

    def _with_step(self, rows: list[Row]) -> list[Row]:
        """Those that can be drawn."""
        found = [row for row in rows if finite(row.get("step")) is not None]
        self.num_stepless += len(rows) - len(found)
        return found

    def _halve(self) -> None:
        for curve in self._curves.values():
            curve.halve()
        self.rows_per_point *= 2

    def _add(self, rows: list[Row]) -> None:
        found: dict[str, tuple[list[int], list[float]]] = {}
        for row in rows:
            self._count_repeated(row)
            point = self.num_rows // self.rows_per_point
            for key, value in numbers(row):
                points, values = found.setdefault(key, ([], []))
                points.append(point)
                values.append(value)
            self.recent.append(row)
            self.num_rows += 1
        for key, (points, values) in found.items():
            if key in self._curves or len(self._curves) < _MAX_KEYS:
                self._curves.setdefault(key, _Curve()).add(points, values)

    def _count_repeated(self, row: Row) -> None:
        before = self.recent[-1]["step"] if self.recent else -math.inf
        self.num_repeated += row["step"] <= before

    @property
    def keys(self) -> list[str]:
        """The names of all numbers that a row has had; nested ones as `reward_terms/edge`."""
        return list(self._curves)

    def mean(self, key: str) -> list[float | None]:
        """A value for each point; None where no row had one."""
        return self._mean(key, slice(0, self._num_points))

    def points(self, keys: Mapping[str, bool], num_rows: int = 0) -> dict[str, Any]:
        """Curves as JSON, from the point on that row `num_rows` belongs to.

        Args:
            keys: Of numbers; True for those that come with `low` and `high` too, where a point
                stands for several rows.
            num_rows: 0 for all points.
        """
        start = num_rows // self.rows_per_point
        wanted = slice(start, self._num_points)
        found: dict[str, Any] = {"start": start, "mean": {}, "low": {}, "high": {}}
        for key, bounded in keys.items():
            if (curve := self._curves.get(key)) is None:
                continue
            found["mean"][key] = self._mean(key, wanted)
            if bounded and self.rows_per_point > 1:
                found["low"][key] = _listed(curve.low[wanted])
                found["high"][key] = _listed(curve.high[wanted])
        return found

    def _mean(self, key: str, wanted: slice) -> list[float | None]:
        curve = self._curves[key]
        digits = 12 if key in ("step", "time") else _DIGITS
        with np.errstate(invalid="ignore", divide="ignore"):
            return _listed(curve.total[wanted] / curve.count[wanted], digits)

    @property
    def _num_points(self) -> int:
        return -(-self.num_rows // self.rows_per_point)


def numbers(row: Row, before: str = "") -> Iterator[tuple[str, float]]:
    """A row's numbers by key; of a pair, such as an interval, `low` and `high`.

    Example: `{"reward_terms": {"edge": 0.5}}` has `("reward_terms/edge", 0.5)`
    """
    for key, value in row.items():
        if isinstance(value, Mapping) and not before:
            yield from numbers(value, f"{key}/")
        elif isinstance(value, list) and len(value) == 2:
            for end, of_end in zip(("low", "high"), value, strict=True):
                if (found := finite(of_end)) is not None:
                    yield f"{before}{key}/{end}", found
        elif (found := finite(value)) is not None:
            yield f"{before}{key}", found


def _listed(
    values: "np.ndarray[Any, np.dtype[np.float64]]", digits: int = _DIGITS
) -> list[float | None]:
    """As JSON can hold them, short."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in values.tolist()]
