"""A run's folder: the paths that several parts use, the rows of its tables, and how to follow one.

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
    num_tokens: int
    tokens_per_s: float
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
