"""A line of the page of runs, kept while the run's files stay as they are."""

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from console.reading.samples import finite, sampled_rows
from console.reading.state import RunIdentity, RunState, read_identity, read_state
from console.runs import Run

HELDOUT = ("triplet_f1", "object_f1", "triplet_recall")
"""Keys of an evaluation, of which the first that is there is a run's held-out measure."""
_POINTS = 60
"""Points of a sparkline."""
_KEPT = 500
"""Runs whose lines are kept."""


@dataclass(frozen=True, slots=True)
class Overview:
    """A run in a line."""

    run: Run
    key: str
    """Names the run's server-sent event: its name may hold anything."""
    state: RunState
    identity: RunIdentity
    reward: list[float]
    """Mean rewards over the run, a few; SFT's losses where there are none."""
    measure: str
    """The name of what `reward` holds."""
    heldout: list[float]
    heldout_measure: str
    changed: float
    """Unix time of the last change."""


class Overviews:
    """Reads each run's line, and again when its files change."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, tuple[object, Overview]] = OrderedDict()
        self._lock = Lock()

    def of(self, run: Run) -> Overview:
        """A run's line; a few milliseconds where the run has changed."""
        signature = _signature(run)
        kept = self._kept.get(run.path)
        if kept is None or kept[0] != signature:
            kept = (signature, read_overview(run))
        with self._lock:
            self._kept[run.path] = kept
            self._kept.move_to_end(run.path)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return kept[1]


OVERVIEWS = Overviews()


def read_overview(run: Run) -> Overview:
    """A run's line now."""
    files = run.files
    steps = sampled_rows(files.metrics, _POINTS)
    measure = "reward_mean" if any("reward_mean" in row for row in steps) else "loss"
    evaluations = sampled_rows(files.evaluations, _POINTS)
    names = (name for name in HELDOUT if any(name in row for row in evaluations))
    heldout = next(names, HELDOUT[0])
    return Overview(
        run=run,
        key=hashlib.sha256(run.name.encode(errors="replace")).hexdigest()[:12],
        state=read_state(files),
        identity=read_identity(files),
        reward=_numbers(steps, measure),
        measure=measure,
        heldout=_numbers(evaluations, heldout),
        heldout_measure=heldout,
        changed=_changed(run),
    )


def _numbers(rows: list[dict[str, object]], key: str) -> list[float]:
    return [value for row in rows if (value := finite(row.get(key))) is not None]


def _changed(run: Run) -> float:
    files = run.files
    return max(_stat(file)[0] for file in (files.metrics, files.config, files.path))


def _signature(run: Run) -> object:
    """It changes when the line would: also when a run falls silent, which changes no file."""
    files = run.files
    stats = (
        files.config, files.metrics, files.evaluations, files.finished, files.ranks / "rank-0.json",
    )  # fmt: skip
    found = [*map(_stat, stats)]
    if not found[1][1]:  # before the first step only the logs say whether it goes on
        found += map(_stat, files.logs.glob("*.log"))
    age_s = time.time() - max(changed for changed, _ in found)
    return *found, min(int(age_s / 10), 12)


def _stat(file: Path) -> tuple[float, int]:
    try:
        found = file.stat()
    except OSError:
        return 0.0, 0
    return found.st_mtime, found.st_size
