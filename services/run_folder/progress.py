"""How far a run is, what its trainer does, and what failed last."""

import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean

from services.printable import age, counted
from services.run_folder.paths import RunFolder
from services.run_folder.tables import TAIL_BYTES, StepRow, TableFollower

_SHOWN_CHARACTERS = 400
"""A log's line is cut here."""
_PACE_ROWS = 12
"""Rows whose mean is a run's present pace."""
_LATEST_S = 1e11
"""A larger number is no Unix time in seconds."""
_ERROR = re.compile(r"^(?:(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (?:ERROR|CRITICAL) |sgg-rl: )")
"""A line of a log that says what failed; the last words of a command have no time."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is, by its last row."""

    step: int
    """Steps that are done."""
    num_steps: int | None
    """By the last row that says it."""
    reward: float | None
    """The step's mean; None for SFT."""
    loss: float | None
    """SFT's, in nats a token; None for GRPO, where it is no measure of progress."""
    num_servers: int | None
    """Rollout servers that were registered; None where the run has none."""
    last_step_s: float | None
    """Seconds since the step's end; None where its row has no usable time."""
    left_s: float | None
    """Seconds to the run's end at its present pace; None where the pace is not known."""

    def __str__(self) -> str:
        """Example: `step 12 of 80, 3 s ago: reward 2.134, 3 rollout servers, 0:05:30 left`."""
        found = [
            None if self.reward is None else f"reward {self.reward:.3f}",
            None if self.loss is None else f"loss {self.loss:.3f}",
            None if self.num_servers is None else counted(self.num_servers, "rollout server"),
            None if self.left_s is None else f"{timedelta(seconds=round(self.left_s))} left",
        ]
        ago = "" if self.last_step_s is None else f", {age(self.last_step_s)} ago"
        head = f"step {self.step} of {self.num_steps or '?'}{ago}"
        return ": ".join(filter(None, [head, ", ".join(filter(None, found))]))


def read_progress(folder: RunFolder) -> RunProgress | None:
    """How far a run is; None before its first step."""
    rows = TableFollower[StepRow](folder.metrics, tail_bytes=TAIL_BYTES).read().rows
    if not rows:
        return None
    last = rows[-1]
    said = (row.get("num_steps") for row in reversed(rows))
    num_steps = next((found for found in said if isinstance(found, int) and found), None)
    return RunProgress(
        step=steps_done(last),
        num_steps=num_steps,
        reward=last.get("reward_mean"),
        loss=last.get("loss") if is_sft(last) else None,
        num_servers=last.get("num_servers"),
        last_step_s=_seconds_since(last.get("time")),
        left_s=time_left(rows, num_steps),
    )


def _seconds_since(at: object) -> float | None:
    if isinstance(at, int | float) and 1 < at < _LATEST_S:  # false for NaN too
        return time.time() - at
    return None


def is_sft(row: StepRow) -> bool:
    """Whether SFT wrote the row."""
    return "loss" in row and "policy_version" not in row


def steps_done(row: StepRow) -> int:
    """Steps that are done with a row's: GRPO counts them from 0, SFT from 1."""
    return row.get("step", -1) + (not is_sft(row))


def time_left(rows: Iterable[StepRow], num_steps: int | None) -> float | None:
    """Seconds to the end at the pace of the last rows; None where it is not known.

    Their phases count, not when they ended: before a resume the run was down.
    """
    recent = list(rows)[-_PACE_ROWS:]
    seconds = [sum(row["phases_s"].values()) for row in recent if row.get("phases_s")]
    if num_steps is None or not seconds:
        return None
    return fmean(seconds) * (num_steps - steps_done(recent[-1]))


@dataclass(frozen=True, slots=True)
class TrainerSign:
    """What the trainer does, by the files that its ranks keep writing (`trainer.ranks.watch`)."""

    num_ranks: int
    phase: str
    """What rank 0 does, such as `train`."""
    step: int
    done: bool
    failed: str | None
    """The message that rank 0 ended with."""
    ago_s: float
    """Seconds since a rank wrote last: over a minute, it has stopped or hangs."""

    def __str__(self) -> str:
        """Example: `8 ranks, 'train' of step 12, last sign 3 s ago`."""
        doing = "done" if self.done else f"'{self.phase}' of step {self.step}"
        doing = f"failed: {self.failed}" if self.failed else doing
        ranks = counted(self.num_ranks, "rank")
        return f"{ranks}, {doing}, last sign {age(self.ago_s)} ago"


def read_trainer(folder: RunFolder) -> TrainerSign | None:
    """What the trainer does; None where none has begun, or its files cannot be read."""
    files = sorted(folder.ranks.glob("rank-*.json"))
    try:
        rank_0 = json.loads((folder.ranks / "rank-0.json").read_text())
        return TrainerSign(
            num_ranks=len(files),
            **{name: rank_0[name] for name in ("phase", "step", "done", "failed")},
            ago_s=max(0.0, time.time() - max(file.stat().st_mtime for file in files)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class LoggedError:
    """What a part of a run has last said that failed."""

    log: str
    """The file's name, such as `trainer.log`."""
    ago_s: float
    line: str

    def __str__(self) -> str:
        """Example: `last error, 2 min ago, trainer.log: trainer[0] …: no room`."""
        return f"last error, {age(self.ago_s)} ago, {self.log}: {self.line[:_SHOWN_CHARACTERS]}"


def last_error(folder: RunFolder) -> LoggedError | None:
    """The newest error in a run's logs; None where the ends of all of them have none."""
    logs = (log for log in folder.logs.glob("*.log") if log.is_file())
    found = [error for log in logs if (error := _error_of(log)) is not None]
    return min(found, key=lambda error: error.ago_s, default=None)


def _error_of(log: Path) -> LoggedError | None:
    with log.open("rb") as stream:
        written = os.fstat(stream.fileno())
        stream.seek(max(0, written.st_size - TAIL_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        if (match := _ERROR.match(line)) is not None:
            said = _seconds(match[1]) or written.st_mtime
            return LoggedError(log.name, max(0.0, time.time() - said), line[match.end() :])
    return None


def _seconds(date: str | None) -> float | None:
    try:
        return datetime.fromisoformat(date).timestamp() if date else None
    except ValueError:  # a line that only looks like one of a log
        return None
