"""A run's folder: the paths that several parts use, the rows of its tables, and how to follow one.

Example of a row of `metrics.jsonl`: `{"step": 3, "num_steps": 100, "reward_mean": 2.1, …}`.
`docs/metrics.md` explains each number.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

from services.printable import age, counted

TAIL_BYTES = 1 << 18
"""The last hundred rows or so of `metrics.jsonl`."""
_SHOWN_CHARACTERS = 400
"""A log's line is cut here."""
_PACE_ROWS = 12
"""Rows whose mean is a run's present pace."""
_ERROR = re.compile(r"^(?:(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (?:ERROR|CRITICAL) |sgg-rl: )")
"""A line of a log that says what failed; the last words of a command have no time."""


class RunFolder:
    """The paths of a run.

    Example: `RunFolder(Path("runs/demo")).metrics == Path("runs/demo/metrics.jsonl")`
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.ledger = path / "ledger.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.rollouts = path / "rollouts"
        self.ranks = path / "ranks"
        self.checkpoints = path / "checkpoints"
        self.checkpoint = path / "checkpoint"
        """GRPO's trained model, with its processor."""
        self.model = path / "model"
        """SFT's trained model, with its processor."""
        self.adapter = path / "adapter"
        """SFT's trained adapter, where it trained one."""
        self.incarnation = path / "incarnation"
        self.folder_id = path / "folder-id"
        """By which Redis knows the run that has a name (`services.redis.registry.RunOwner`)."""
        self.images = path / "images"
        """The image store, on a file system that trainer and samplers share."""
        self.summary = path / "summary.json"
        self.plots = path / "plots"
        self.tensorboard = path / "tensorboard"
        self.wandb_id = path / "wandb-id"
        self.logs = path / "logs"
        self.redis = path / "redis"
        self.secrets = path / "secrets"
        self.slurm = path / "slurm"
        self.finished = path / "finished"
        """There once a run came to its end."""

    @property
    def newest_checkpoint(self) -> str | None:
        """Its name, such as `step-000040`; None before the first."""
        return max((folder.name for folder in self.checkpoints.glob("step-*")), default=None)

    def heldout(self, label: str) -> Path:
        """The answers about held-out images `before` or `after` training."""
        return self.path / f"heldout-{label}.jsonl"

    def rollout_files(self, step: int | None = None) -> list[Path]:
        """The files of one step's groups, or of all steps'; each rank has one a step."""
        number = "*" if step is None else f"{step:06d}"
        return sorted(self.rollouts.glob(f"step-{number}.rank*.jsonl"))


def trained_model(path: Path) -> tuple[Path, Path | None]:
    """The model's folder that a path means, and the settings of the run that made it.

    Example: `trained_model(Path("runs/demo"))` is `(Path("runs/demo/checkpoint"),
    Path("runs/demo/config.toml"))`

    Args:
        path: A model's folder, or a run's; None stands for the settings where no run's lie there.
    """
    run = RunFolder(path)
    if run.config.is_file() and not (path / "config.json").is_file():
        return (run.checkpoint if run.checkpoint.is_dir() else run.model), run.config
    above = RunFolder(path.parent)
    made = path in (above.checkpoint, above.model) and above.config.is_file()
    return path, above.config if made else None


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


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is, by its last row."""

    step: int
    """Steps that are done."""
    num_steps: int | None
    reward: float | None
    """The step's mean; None for SFT."""
    loss: float | None
    """SFT's, in nats a token; None for GRPO, where it is no measure of progress."""
    num_servers: int | None
    """Rollout servers that were registered; None where the run has none."""
    last_step_s: float
    """Seconds since the step's end."""
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
        head = f"step {self.step} of {self.num_steps or '?'}, {age(self.last_step_s)} ago"
        return ": ".join(filter(None, [head, ", ".join(filter(None, found))]))


def read_progress(folder: RunFolder) -> RunProgress | None:
    """How far a run is; None before its first step."""
    rows = TableFollower[StepRow](folder.metrics, tail_bytes=TAIL_BYTES).read().rows
    if not rows:
        return None
    last = rows[-1]
    return RunProgress(
        step=steps_done(last),
        num_steps=last.get("num_steps"),
        reward=last.get("reward_mean"),
        loss=last.get("loss") if is_sft(last) else None,
        num_servers=last.get("num_servers"),
        last_step_s=time.time() - last.get("time", 0.0),
        left_s=time_left(rows, last.get("num_steps")),
    )


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
    failure_rate: float


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

    def read(self) -> NewRows[AnyRow]:
        """The rows since the last call. A line that is not a JSON object is passed over.

        Raises:
            OSError: The file is there and cannot be read.
        """
        try:
            stream = self._file.open("rb")
        except FileNotFoundError:
            self._offset = 0
            return NewRows([], cut=self._is_other_file(-1))
        with stream:
            status = os.fstat(stream.fileno())
            cut = self._is_other_file(status.st_ino) or status.st_size < self._offset
            if cut:  # in the middle of a line, the rest of that line is not JSON
                tail_bytes = status.st_size if self._tail_bytes is None else self._tail_bytes
                self._offset = max(0, status.st_size - tail_bytes)
            stream.seek(self._offset)
            # The last line may be half written: a later call reads it whole.
            whole = stream.read().rpartition(b"\n")[0]
        self._offset += len(whole) + bool(whole)
        return NewRows([row for line in whole.splitlines() if (row := _row(line)) is not None], cut)

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
