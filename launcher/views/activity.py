"""What a run waits for, or does, at this moment."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from evaluation.of_a_run.progress_file import read_evaluation_progress
from services.run_folder import RunFolder, read_trainer

_LOOK_EVERY_S = 2.0
_SILENT_S = 60.0
"""A trainer that wrote nothing for so long is gone, or is of an earlier start."""
_SAID_AFTER_S = 5
_PHASES = {
    "wait": "waits for groups",
    "prepare": "makes tensors",
    "train": "trains",
    "record": "writes the groups",
    "publish": "sends the weights",
    "checkpoint": "writes a checkpoint",
}
_LOADING = {
    "join": "the trainer starts: it waits for all ranks",
    "load": "the trainer loads the model and waits for the services",
}


@dataclass(frozen=True, slots=True)
class Activity:
    """One thing that a run does.

    Example: `Activity("evaluating version 0", ", 120 of 500 images", holds_up=True)`
    """

    what: str
    how_far: str = ""
    holds_up: bool = False
    """Whether no step goes on meanwhile."""


class ActivityWatch:
    """Looks into a run's folder every two seconds.

    Args:
        folder: The run's.
        states: Each process by name; empty where the caller started none.
    """

    def __init__(self, folder: RunFolder, states: Callable[[], Mapping[str, str]]) -> None:
        self._folder = folder
        self._states = states
        self._now: Activity | None = None
        self._looked_at = -_LOOK_EVERY_S
        self._since = 0.0

    def look(self) -> tuple[Activity | None, float]:
        """What goes on, and for how many seconds it has."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            found = _loading(self._states()) or _evaluating(self._folder) or _trainer(self._folder)
            if (found and found.what) != (self._now and self._now.what):
                self._since = now
            self._now = found
        return self._now, now - self._since


def in_words(activity: Activity, seconds: float) -> str:
    """Example: `evaluating version 0, 120 of 500 images (0:01:05)`."""
    long = f" ({timedelta(seconds=int(seconds))})" if seconds >= _SAID_AFTER_S else ""
    return f"{activity.what}{activity.how_far}{long}"


def _loading(states: Mapping[str, str]) -> Activity | None:
    starting = [name for name, state in states.items() if state.startswith("starting")]
    if not starting:
        return None
    loads = any(name.startswith("rollout") for name in starting)
    what = "starting " + ", ".join(starting) + (": the model is loaded" if loads else "")
    return Activity(what, holds_up=True)


def _evaluating(folder: RunFolder) -> Activity | None:
    progress = read_evaluation_progress(folder)
    if progress is None:
        return None
    return Activity(
        f"evaluating version {progress.step}",
        f", {progress.done} of {progress.total} images",
        holds_up=progress.label != "now",
    )


def _trainer(folder: RunFolder) -> Activity | None:
    trainer = read_trainer(folder)
    if trainer is None or trainer.done or trainer.failed or trainer.ago_s > _SILENT_S:
        return None
    if trainer.phase in _LOADING:
        return Activity(_LOADING[trainer.phase], holds_up=True)
    does = _PHASES.get(trainer.phase, trainer.phase)
    return Activity(f"step {trainer.step + 1}: the trainer {does}")
