"""A run's health: one sentence, a few numbers, and what is out of its healthy range."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from console.reading.curves import Row, numbers
from console.reading.guide import Guide, guides
from console.reading.state import RunState
from console.views import duration, number
from services.printable import age

_ENOUGH_ROWS = 5
"""A first step or two say little."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A number that is worth a glance."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A number that is out of its healthy range, by its mean over the last steps."""

    value: float
    guide: Guide


def sentence(state: RunState, rows: Sequence[Row]) -> str:
    """What the run does now.

    Example: `Training: step 412 of 2,000, 3 h 10 min left. The trainer waits 4 % of the time.`
    """
    progress = state.progress
    if progress is None:
        return {
            "starting": "Starting: services and model are being loaded; there is no step yet.",
            "live": "Training: the first step goes on.",
            "finished": "Finished, without a step.",
        }.get(state.word, "Stopped before its first step.")
    steps = f"step {progress.step:,}"
    if progress.num_steps is not None:
        steps += f" of {number(progress.num_steps)}"
    if state.word == "live":
        left = f", {duration(progress.left_s)} left" if progress.left_s is not None else ""
        return f"Training: {steps}{left}.{_waits(rows)}"
    if progress.last_step_s is not None:  # as of the state's moment, which may be long ago
        ago_s = progress.last_step_s + time.time() - state.at
        steps += f", the last one {age(max(0.0, ago_s))} ago"
    if state.word == "finished":
        return f"Finished: {steps}."
    return f"{state.word.capitalize()}: {steps}. Go on with --resume."


def _waits(rows: Sequence[Row]) -> str:
    share = recent_means(rows).get("trainer_idle_fraction")
    return "" if share is None else f" The trainer waits {100 * share:.0f} % of the time."


def tiles(rows: Sequence[Row], evaluations: Sequence[Row]) -> list[Tile]:
    """Those that the run has numbers for.

    Args:
        rows: The last ones of `metrics.jsonl`.
        evaluations: The last ones of `evaluations.jsonl`.
    """
    if not rows:
        return []
    last, means = dict(numbers(rows[-1])), recent_means(rows)
    held = dict(numbers(evaluations[-1])) if evaluations else {}
    found = [
        _tile("reward", last, "reward_mean", means),
        _tile("loss", last, "loss", means) if "reward_mean" not in last else None,
        _tile("held-out triplet F1", held, "triplet_f1", {}),
        _tile("held-out object F1", held, "object_f1", {}) if "triplet_f1" not in held else None,
        _share("failed answers", last, "failure_rate", means),
        _tile("lag, versions", last, "policy_lag_mean", means),
        _tile("rollout servers", last, "num_servers", {}),
        _tile("tokens/s", last, "tokens_per_s", means),
        _share("trainer waits", last, "trainer_idle_fraction", means),
    ]
    return [tile for tile in found if tile is not None]


def findings(rows: Sequence[Row]) -> list[Finding]:
    """What the documentation calls unhealthy, by the mean of the last steps."""
    if len(rows) < _ENOUGH_ROWS:
        return []
    means, known = recent_means(rows), guides()
    bad = (key for key in means if key in known and not known[key].is_healthy(means[key]))
    return [Finding(means[key], known[key]) for key in bad]


def recent_means(rows: Sequence[Row]) -> dict[str, float]:
    """The mean of each number over the rows that have it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for key, value in numbers(row):
            values.setdefault(key, []).append(value)
    return {key: mean(found) for key, found in values.items()}  # fmean's sum may be too large


def _tile(name: str, last: dict[str, float], key: str, means: dict[str, float]) -> Tile | None:
    if key not in last:
        return None
    return Tile(name, number(last[key]), f"recently {number(means[key])}" if key in means else "")


def _share(name: str, last: dict[str, float], key: str, means: dict[str, float]) -> Tile | None:
    if key not in last:
        return None
    return Tile(name, f"{100 * last[key]:.1f} %", f"recently {100 * means[key]:.1f} %")
