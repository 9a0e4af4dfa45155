"""How a run is, by its folder alone: its state in a word, why, and how far it has come."""

import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from services.run_folder import (
    RunFolder,
    RunProgress,
    TrainerSign,
    last_error,
    read_progress,
    read_trainer,
)

Word = Literal["live", "starting", "finished", "stopped", "failed"]
_SILENT_S = 60.0
"""A trainer's ranks write every ten seconds."""


@dataclass(frozen=True, slots=True)
class RunState:
    """A run at one moment."""

    word: Word
    reason: str | None
    """Why it failed or stopped, where something says so."""
    progress: RunProgress | None
    """None before its first step."""
    trainer: TrainerSign | None
    """None before its trainer's first start."""
    at: float
    """Unix time of that moment."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come, unless somebody starts it again."""
        return self.word in ("finished", "stopped", "failed")


def read_state(files: RunFolder) -> RunState:
    """A run's state now. What another release wrote and cannot be read counts as not there."""
    progress, trainer = _progress(files), read_trainer(files)
    word = _word(files, progress, trainer)
    reason = trainer.failed if trainer and word == "failed" else None
    if word in ("stopped", "failed") and reason is None:
        reason = _last_error(files)
    return RunState(word, reason, progress, trainer, at=time.time())


def _last_error(files: RunFolder) -> str | None:
    try:
        error = last_error(files)
    except OSError:  # a log that this process may not read, or that has gone
        return None
    return f"{error.log}: {error.line}" if error else None


def _progress(files: RunFolder) -> RunProgress | None:
    try:
        return read_progress(files)
    except (TypeError, ValueError, AttributeError, OSError):
        return None


def _word(files: RunFolder, progress: RunProgress | None, trainer: TrainerSign | None) -> Word:
    if files.finished.exists() or (trainer is not None and trainer.done):
        return "finished"
    ages = [trainer.ago_s] if trainer else []
    if progress and progress.last_step_s is not None and not trainer:
        ages.append(progress.last_step_s)
    if any(age_s < _SILENT_S for age_s in ages):
        return "failed" if trainer and trainer.failed else "live" if progress else "starting"
    if trainer and trainer.failed:
        return "failed"
    if progress and progress.num_steps is not None and progress.step >= progress.num_steps:
        return "finished"
    return "starting" if _wrote_lately(files) and progress is None else "stopped"


def _wrote_lately(files: RunFolder) -> bool:
    """Whether a part of the run says something: its model is being loaded."""
    try:
        newest = max((log.stat().st_mtime for log in files.logs.glob("*.log")), default=0.0)
    except OSError:
        return False
    return time.time() - newest < _SILENT_S


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a run is about, by its `config.toml`; "" where that does not say."""

    model: str
    data: str
    rubric: str
    seed: str
    problem: str | None
    """Why the file cannot be read."""


def read_identity(files: RunFolder) -> RunIdentity:
    """The file's own words: it may be of an earlier or later release."""
    tree, problem = read_config(files)
    rubric = _at(tree, "reward", "rubric") or "balanced"
    return RunIdentity(
        model=_short(_at(tree, "model", "path")),
        data=_short(_at(tree, "data", "train")),
        rubric=str(rubric.get("name", "own")) if isinstance(rubric, dict) else str(rubric),
        seed=str(_at(tree, "run", "seed") or 0),
        problem=problem,
    )


def read_config(files: RunFolder) -> tuple[dict[str, Any], str | None]:
    """The tables of a run's `config.toml`, and why there are none."""
    try:
        return tomllib.loads(files.config.read_text(encoding="utf-8")), None
    except FileNotFoundError:
        return {}, "there is no config.toml, so model, data and rubric are not known"
    except (OSError, ValueError) as error:
        return {}, f"config.toml cannot be read: {error}"


def _at(tree: Mapping[str, Any], section: str, field: str) -> Any:
    found = tree.get(section)
    return found.get(field) if isinstance(found, dict) else None


def _short(path: object) -> str:
    """The last two parts of a path."""
    return "/".join(str(path or "").rstrip("/").split("/")[-2:])
