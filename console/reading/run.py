"""A run's curves, kept up to date while somebody looks."""

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

from console.reading.charts import drawn_keys, figures
from console.reading.curves import Curves
from console.runs import Run

_KEPT = 16
"""Runs whose curves are kept, about 4 MB each."""


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
        self._num_cuts = 0

    def update(self) -> None:
        """Read what is new."""
        with self.lock:
            cut, cut_too = self.steps.update(), self.evaluations.update()
            self._num_cuts += cut or cut_too

    @property
    def mark(self) -> str:
        """Changes with whatever is new. Example: `1-2-412-5`."""
        steps, evaluations = self.steps, self.evaluations
        return f"{self._num_cuts}-{steps.rows_per_point}-{steps.num_rows}-{evaluations.num_rows}"

    def points(self, since: str = "") -> dict[str, Any]:
        """The curves' points as JSON.

        Args:
            since: The `mark` of an earlier answer: then only what has changed since comes, `start`
                points into the curves.
        """
        with self.lock:
            num_rows = self._rows_at(since)
            drawn = drawn_keys(figures(self.steps, self.evaluations))
            return {
                "mark": self.mark,
                "steps": self.steps.points(drawn["steps"], num_rows),
                "evaluations": self.evaluations.points(drawn["evaluations"]),
                "events": [],
            }

    def _rows_at(self, since: str) -> int:
        """Rows that the one who asks has; 0 where its points are no longer these."""
        same, _, rest = since.rpartition("-")[0].rpartition("-")
        if same != f"{self._num_cuts}-{self.steps.rows_per_point}":
            return 0
        return int(rest) if rest.isdigit() else 0


class RunReaders:
    """Readers of the runs that were looked at last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, RunReader] = OrderedDict()
        self._lock = Lock()

    def of(self, run: Run) -> RunReader:
        """The run's reader, up to date."""
        with self._lock:
            reader = self._kept.setdefault(run.path, RunReader(run))
            self._kept.move_to_end(run.path)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        reader.update()
        return reader


READERS = RunReaders()
