"""A run's curves and events, kept up to date while somebody looks."""

from collections import OrderedDict, deque
from pathlib import Path
from threading import Lock
from typing import Any

from console.reading.charts import drawn_keys, figures
from console.reading.curves import Curves, Row
from console.reading.samples import finite
from console.runs import Run
from services.printable import counted
from services.run_folder import TableFollower

_KEPT = 16
"""Runs whose curves are kept, about 4 MB each."""
_CHUNK_BYTES = 1 << 20
_KEPT_EVENTS = 100
"""Events of a kind: some come with every step."""
_MAX_KINDS = 50
_EVENT_CHARACTERS = 300
_MARK_DIGITS = 18
BAD = ("server_died", "quarantined", "rolled_back", "failed", "skipped")
"""Kinds of events that call for a look"""


class RunReader:
    """The curves of one run.

    Args:
        run: Its files may come later.
    """

    def __init__(self, run: Run) -> None:
        self.steps = Curves(run.files.metrics)
        self.evaluations = Curves(run.files.evaluations)
        self.lock = Lock()
        """Held while it reads and while it is read: pages come from several threads."""
        self._events = TableFollower[Row](run.files.events)
        self._kept_events: dict[str, deque[Row]] = {}
        self._num_events = self._num_cuts = 0

    def update(self) -> None:
        """Read what is new."""
        with self.lock:
            cut, cut_too = self.steps.update(), self.evaluations.update()
            self._num_cuts += cut or cut_too
            self._update_events()

    def _update_events(self) -> None:
        while True:
            rows, cut = self._events.read(_CHUNK_BYTES)
            if cut:
                self._kept_events, self._num_events = {}, 0
            for row in rows:
                kind = str(row.get("kind"))[:40]
                if kind in self._kept_events or len(self._kept_events) < _MAX_KINDS:
                    self._kept_events.setdefault(kind, deque(maxlen=_KEPT_EVENTS)).append(row)
                    self._num_events += 1
            if not self._events.is_behind:
                return

    @property
    def events(self) -> list[dict[str, Any]]:
        """The last ones of each kind, in the order of their time."""
        found = (_event(row) for rows in self._kept_events.values() for row in rows)
        return sorted((event for event in found if event), key=lambda event: event["time"])

    def doubts(self, *, is_over: bool) -> list[str]:
        """What is wrong with the files, in sentences.

        Args:
            is_over: Nothing more is to come: nobody will write the rest of a half line.
        """
        found = []
        for curves, name in (
            (self.steps, "metrics.jsonl"),
            (self.evaluations, "evaluations.jsonl"),
        ):
            if is_over and curves.ends_in_half_a_line:
                found.append(f"The last line of {name} is half written, and left out.")
            if curves.num_unreadable:
                found.append(f"{_lines(curves.num_unreadable, name)} no JSON, and left out.")
            if curves.num_stepless:
                found.append(
                    f"{_lines(curves.num_stepless, name)} without a step, and left out: of another "
                    "release, or damaged."
                )
        if self.steps.num_repeated:
            found.append(
                f"{_lines(self.steps.num_repeated, 'metrics.jsonl')} of a step that was there "
                "before: two trainers may be writing into this folder. The curves show every line."
            )
        return found

    @property
    def mark(self) -> str:
        """Changes with whatever is new. Example: `1-2-412-5.9`."""
        steps, others = self.steps, f"{self.evaluations.num_rows}.{self._num_events}"
        return f"{self._num_cuts}-{steps.rows_per_point}-{steps.num_rows}-{others}"

    def points(self, since: str = "") -> dict[str, Any]:
        """The curves' points as JSON.

        Args:
            since: The `mark` of an earlier answer: then only what has changed since comes, `start`
                points into the curves.
        """
        with self.lock:
            num_rows = self._rows_at(since)
            drawn = drawn_keys(figures(self.steps.keys, self.evaluations.keys))
            return {
                "mark": self.mark,
                "steps": self.steps.points(drawn["steps"], num_rows),
                "evaluations": self.evaluations.points(drawn["evaluations"]),
                "events": self.events,
            }

    def _rows_at(self, since: str) -> int:
        """Rows that the one who asks has; 0 where its points are no longer these."""
        same, _, rest = since.rpartition("-")[0].rpartition("-")
        if same != f"{self._num_cuts}-{self.steps.rows_per_point}":
            return 0
        if not (rest.isascii() and rest.isdigit() and len(rest) <= _MARK_DIGITS):
            return 0
        return num_rows if (num_rows := int(rest)) <= self.steps.num_rows else 0


class RunReaders:
    """Readers of the runs that were looked at last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, RunReader] = OrderedDict()
        self._lock = Lock()

    def of(self, run: Run) -> RunReader:
        """The run's reader, up to date."""
        with self._lock:
            reader = self._kept.get(run.path) or RunReader(run)
            self._kept[run.path] = reader
            self._kept.move_to_end(run.path)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        reader.update()
        return reader


def _lines(count: int, name: str) -> str:
    return f"{counted(count, 'line')} of {name} {'is' if count == 1 else 'are'}"


def _event(row: Row) -> dict[str, Any] | None:
    """What the page needs of a line; None where it is another schema's."""
    at, step = finite(row.get("time")), finite(row.get("step"))
    if at is None or step is None:
        return None
    kind = str(row.get("kind"))
    return {
        "time": at,
        "step": step,
        "kind": kind,
        "text": str(row.get("text", kind))[:_EVENT_CHARACTERS],
        "bad": kind in BAD,
    }


READERS = RunReaders()
