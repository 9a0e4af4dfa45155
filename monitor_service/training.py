"""What the trainer's files say: its last steps, how often they come, and what it does now."""

import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from services.run_folder import TAIL_BYTES, EvaluationRow, RunFolder, StepRow, TableFollower

_RECENT = 20
"""Steps whose usual duration is taken: a checkpoint, or the pause of a resume, is not usual."""
OUTCOMES = {
    "num_groups": "trained",
    "num_stale": "stale",
    "num_dead": "dead",
    "num_replaced": "replaced",
}
"""Key of a line to what became of that many groups."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """What rank 0 is doing: `ranks/rank-0.json` of the run's folder.

    Example: `Beat(phase="train", at=1795374260.9)`
    """

    phase: str
    at: float
    """Unix time of its last sign of life; it gives one at least every 10 s."""


class Training:
    """A run's trainer as its files show it; `look` brings it up to date.

    SFT writes the same files, with fewer numbers in a line.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.last: StepRow = {}
        """The last line of `metrics.jsonl`; empty before the first."""
        self.evaluation: EvaluationRow = {}
        """The last line of `evaluations.jsonl`; empty where nothing was evaluated."""
        self.step_interval_s: float | None = None
        """Median time between the last lines; None before the second."""
        self.groups: Counter[str] = Counter()
        """What became of groups in the steps that were seen to happen, by outcome."""
        self.num_tokens = 0
        """Sampled tokens of these steps."""
        self.beat: Beat | None = None
        """None before the trainer's first start."""
        self.folder = folder
        self._steps = TableFollower[StepRow](folder.metrics, tail_bytes=TAIL_BYTES)
        self._evaluations = TableFollower[EvaluationRow](folder.evaluations, tail_bytes=TAIL_BYTES)
        self._times: deque[float] = deque(maxlen=_RECENT)
        self._counted_until = time.time()
        """Unix time of the last step that is in the counts, which a cut does not take back."""

    def look(self) -> None:
        """Read what is new.

        Raises:
            OSError: A file that is there cannot be read.
        """
        rows, cut = self._steps.read()
        if cut:
            self._times.clear()
        self.last = rows[-1] if rows else {} if cut else self.last
        self._count(rows)
        self._times.extend(float(row["time"]) for row in rows if "time" in row)
        gaps = [later - earlier for earlier, later in pairwise(self._times)]
        self.step_interval_s = median(gaps) if gaps else None
        found, cut = self._evaluations.read()
        self.evaluation = found[-1] if found else {} if cut else self.evaluation
        self.beat = _read_beat(self.folder.ranks / "rank-0.json")

    def _count(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Counters begin at 0 with this process: what happened before it, it has not seen."""
        for row in rows:
            if float(row.get("time", 0)) > self._counted_until:
                self._counted_until = float(row["time"])
                self.num_tokens += row.get("num_tokens", 0)
                for key, outcome in OUTCOMES.items():
                    self.groups[outcome] += row.get(key, 0)


def _read_beat(file: Path) -> Beat | None:
    """None where there is none, or one that another release wrote."""
    try:
        found = json.loads(file.read_text())
        return Beat(phase=str(found["phase"]), at=file.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError):
        return None
