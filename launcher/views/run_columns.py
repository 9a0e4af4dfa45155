"""The columns of a run's table, the ones that matter first: a terminal shows those that fit.

Example, on 80 columns:

    step  reward   trend  held-out F1  failed    lag  tok/s  s/step  triplet_f1
      11   1.612  +0.204        0.041      4%  0.8/1  1,204     3.1       0.052
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean

from launcher.views.run_lines import lag, number, percent, step_seconds
from services.run_folder import EvaluationRow, StepRow, is_sft, steps_done

GAP = 2
"""Spaces after each column."""
TREND_STEPS = 10
"""Steps of a mean that is compared with the mean of as many steps before."""

Columns = dict[str, list[str]]
"""Cells by heading, in the order of the table"""


def fitting_columns(columns: Columns, width: int) -> Columns:
    """The first ones that have room.

    Args:
        columns: All.
        width: Characters of a line.
    """
    widths = (max(map(len, (name, *cells))) + GAP for name, cells in columns.items())
    ends = accumulate(widths)
    return {
        name: cells
        for (name, cells), end in zip(columns.items(), ends, strict=True)
        if end - GAP <= width
    }


def run_columns(
    rows: Sequence[StepRow],
    num_shown: int,
    evaluations: Mapping[int, EvaluationRow],
    weights: Mapping[str, float],
) -> Columns:
    """All columns.

    Args:
        rows: The steps, and those before them that their trends need.
        num_shown: How many are in the table: the last ones.
        evaluations: By version.
        weights: Of the terms of the reward: the heaviest come first.
    """
    shown = rows[-num_shown:]
    steps = {"step": [str(steps_done(row)) for row in shown]}
    if rows and is_sft(rows[-1]):
        return steps | _of_sft(shown) | _phases(shown)
    terms = _terms(shown, weights)
    heldout = _heldout(shown, evaluations)
    main = heldout or dict(list(terms.items())[:1])
    return (
        steps
        | {
            "reward": [number(row.get("reward_mean")) for row in shown],
            "trend": [_trend(rows[: i + 1]) for i in range(len(rows) - len(shown), len(rows))],
        }
        | main
        | _speed(shown)
        | terms
        | _phases(shown)
    )


def _trend(rows: Sequence[StepRow]) -> str:
    """The mean reward of the last steps, minus that of as many before; fewer at the start."""
    rewards = [reward for row in rows if (reward := row.get("reward_mean")) is not None]
    span = min(TREND_STEPS, len(rewards) // 2)
    if not span:
        return "-"
    return f"{fmean(rewards[-span:]) - fmean(rewards[-2 * span : -span]):+.3f}"


def _heldout(rows: Sequence[StepRow], evaluations: Mapping[int, EvaluationRow]) -> Columns:
    """The score of the newest version that was evaluated up to each step."""
    scores = {
        version: row.get("triplet_f1", row.get("object_f1"))
        for version, row in sorted(evaluations.items())
    }
    if not any(score is not None for score in scores.values()):
        return {}
    cells = []
    for row in rows:
        until = [score for version, score in scores.items() if version <= steps_done(row)]
        cells.append(number(until[-1] if until else None))
    return {"held-out F1": cells}


def _speed(rows: Sequence[StepRow]) -> Columns:
    return {
        "failed": [percent(row.get("failure_rate")) for row in rows],
        "lag": [lag(row) for row in rows],
        "tok/s": [number(row.get("tokens_per_s"), 0) for row in rows],
        "s/step": [number(step_seconds(row), 1) for row in rows],
    }


def _terms(rows: Sequence[StepRow], weights: Mapping[str, float]) -> Columns:
    names = list(rows[-1].get("reward_terms", {})) if rows else []
    names.sort(key=lambda name: -weights.get(name, 0.0))
    return {name: [number(row.get("reward_terms", {}).get(name)) for row in rows] for name in names}


def _of_sft(rows: Sequence[StepRow]) -> Columns:
    return {
        "loss": [number(row.get("loss")) for row in rows],
        "learning rate": [f"{row.get('learning_rate', 0.0):.2g}" for row in rows],
    }


def _phases(rows: Sequence[StepRow]) -> Columns:
    names = list(rows[-1].get("phases_s", {})) if rows else []
    return {
        f"{name} s": [number(row.get("phases_s", {}).get(name), 1) for row in rows]
        for name in names
    }
