"""A step, and a held-out evaluation, in one line of 80 columns each."""

from collections.abc import Mapping
from typing import Any

from services.run_folder import StepRow, is_sft, steps_done

_LINE_WIDTH = 80

MEASURES = {
    "triplet_recall": "triplet recall",
    "triplet_f1": "F1",
    "mean_predicate_recall": "mean recall",
    "object_f1": "object F1",
}
"""Measures of a held-out evaluation; a task has some of them"""


def step_line(row: StepRow, num_steps: int | None, left: str | None = None) -> str:
    """A step in one line of 80 columns, with the time left to the end where it is known.

    What does not fit is left out, the seconds of a step first; `metrics.jsonl` has all.

    Example: `step 3/100  reward 2.134  failed 4%  lag 0.2/1  812 tok/s  3.4 s  0:05:30 left`
    """
    head = [f"step {steps_done(row)}/{num_steps or '-'}"]
    tail = [f"{left} left"] if left else []
    seconds = step_seconds(row)
    if is_sft(row):
        head.append(f"loss {number(row.get('loss'))}")
        middle = [f"learning rate {row.get('learning_rate', 0.0):.2g}", f"{seconds:,.1f} s"]
    else:
        head.append(f"reward {number(row.get('reward_mean'))}")
        middle = [
            f"failed {percent(row.get('failure_rate'))}",
            f"lag {lag(row)}",
            f"{number(row.get('tokens_per_s'), 0)} tok/s",
            f"{seconds:,.1f} s",
        ]
    return _fitting(head, middle, tail)


def evaluation_line(row: Mapping[str, Any]) -> str:
    """A held-out evaluation in one line of 80 columns, with the versions that answered.

    Example: `evaluated version 40 (40 to 41), strict  triplet recall 0.213  F1 0.201  failed 3%`
    """
    answered = (row.get("policy_version_oldest"), row.get("policy_version_newest"))
    versions = sorted({version for version in answered if version is not None})
    return _fitting(
        [f"evaluated version {row.get('step')} ({' to '.join(map(str, versions))}), strict"],
        [f"{label} {number(row[name])}" for name, label in MEASURES.items() if name in row],
        [f"failed {percent(row.get('failure_rate'))}"],
    )


def _fitting(head: list[str], middle: list[str], tail: list[str]) -> str:
    """One line of all parts that have room; the last ones of the middle give way."""
    while middle and len("  ".join([*head, *middle, *tail])) > _LINE_WIDTH:
        middle.pop()
    return "  ".join([*head, *middle, *tail])


def step_seconds(row: StepRow) -> float:
    """How long a step took."""
    return sum(row.get("phases_s", {}).values())


def number(value: float | None, digits: int = 3) -> str:
    """A dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """The same of a share."""
    return "-" if value is None else f"{100 * value:.0f}%"


def lag(row: StepRow) -> str:
    """Mean and maximum of a step."""
    return f"{number(row.get('policy_lag_mean'), 1)}/{number(row.get('policy_lag_max'), 0)}"
