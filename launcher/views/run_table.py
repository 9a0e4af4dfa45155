"""What a run shows while it goes on: the last steps, and how each process is."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.views.terminal import LiveView, SafeConsole
from services.run_folder import (
    EvaluationRow,
    RunFolder,
    StepRow,
    TableFollower,
    is_sft,
    steps_done,
    time_left,
)

_SHOWN_STEPS = 12
_BETWEEN_COLUMNS = 2
"""Spaces after each."""
_LINE_WIDTH = 80
_COLOURS = {"running": "green", "done": "green", "starting": "yellow", "adopted": "cyan"}


class RunTable(LiveView):
    """A live table on a terminal; one line a step elsewhere.

    Example: `with RunTable(settings.run.files, 100, states, open_console()) as table:`
    """

    def __init__(
        self,
        folder: RunFolder,
        num_steps: int | None,
        states: Callable[[], dict[str, str]],
        console: SafeConsole,
    ) -> None:
        """Shows nothing yet.

        Args:
            folder: The run's; its files may come later.
            num_steps: The run's steps; None takes it from the metrics.
            states: Each process by name, as shown below the table.
            console: Where to.
        """
        super().__init__(console)
        self._steps = TableFollower[StepRow](folder.metrics)
        self._evaluations = TableFollower[EvaluationRow](folder.evaluations)
        self._last_evaluation: EvaluationRow | None = None
        self._evaluated: list[EvaluationRow] = []
        """Those that are said. A resumed run writes the ones up to its checkpoint again."""
        self._num_steps = num_steps
        self._states = states
        self._rows: deque[StepRow] = deque(maxlen=_SHOWN_STEPS)
        self._printed: dict[int, StepRow] = {}
        """By step. A resumed run writes the steps up to its checkpoint again, unchanged."""

    def __enter__(self) -> Self:
        for row in self._steps.read().rows:  # of the run that is resumed
            self._add(row)
        self._evaluated = self._evaluations.read().rows
        return super().__enter__()

    def update(self) -> None:
        """Read what is new and show it."""
        new = [row for row in self._steps.read().rows if self._add(row)]
        evaluations = [row for row in self._evaluations.read().rows if row not in self._evaluated]
        self._evaluated += evaluations
        self._last_evaluation = evaluations[-1] if evaluations else self._last_evaluation
        if self._live:
            self._live.update(Group(*self._parts()), refresh=True)
            return
        for row in new:
            left = self._left() if row is new[-1] else None
            self._print(step_line(row, self._total(row), left))
        for evaluation in evaluations:
            self._print(evaluation_line(evaluation))

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def _parts(self) -> Iterator[RenderableType]:
        yield self._table()
        if self._last_evaluation is not None:
            yield Text(evaluation_line(self._last_evaluation))
        yield self._processes()

    def _total(self, row: StepRow) -> int | None:
        return self._num_steps or row.get("num_steps")

    def _left(self) -> str | None:
        """Time to the end at the pace of the shown steps, such as `1:02:03`."""
        left_s = time_left(self._rows, self._total(self._rows[-1]))
        return None if left_s is None else str(timedelta(seconds=round(left_s)))

    def _add(self, row: StepRow) -> bool:
        """Take up a row; later steps were rolled back. Whether it says anything new."""
        step = row.get("step", -1)
        while self._rows and self._rows[-1].get("step", -1) >= step:
            self._rows.pop()
        self._rows.append(row)
        is_new = self._printed.get(step) != row
        self._printed[step] = row
        return is_new

    def _table(self) -> Table:
        total = self._total(self._rows[-1]) if self._rows else self._num_steps
        left = self._left() if self._rows else None
        title = f"step of {total}" if total else "waiting for the first step"
        table = Table(
            title=f"{title}, {left} left" if left else title,
            title_justify="left",
            box=None,
            padding=(0, _BETWEEN_COLUMNS, 0, 0),
        )
        columns = self._fitting_columns()
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for cells in zip(*columns.values(), strict=True):
            table.add_row(*cells)
        return table

    def _fitting_columns(self) -> dict[str, list[str]]:
        """Those that a terminal has room for; phases give way last, terms of the reward first."""
        last = self._rows[-1] if self._rows else StepRow()
        terms, phases = list(last.get("reward_terms", {})), list(last.get("phases_s", {}))
        rows = [_cells(row, terms, phases) for row in self._rows]
        columns = {name: [row[name] for row in rows] for name in _cells(last, terms, phases)}
        widths = {
            name: max(map(len, (name, *cells))) + _BETWEEN_COLUMNS
            for name, cells in columns.items()
        }
        for name in (*reversed(terms), *(f"{phase} s" for phase in reversed(phases))):
            if sum(widths[name] for name in columns) <= self._console.width:
                break
            del columns[name]
        return columns

    def _processes(self) -> Text:
        text = Text()
        for name, state in self._states().items():
            text.append(f"{name} ", style="bold")
            text.append(f"{state}   ", style=_COLOURS.get(state.split()[0], "red"))
        return text


def _cells(row: StepRow, terms: list[str], phases: list[str]) -> dict[str, str]:
    """A line of the table."""
    rewards, seconds = row.get("reward_terms", {}), row.get("phases_s", {})
    if is_sft(row):
        return {
            "step": str(steps_done(row)),
            "loss": _number(row.get("loss")),
            "learning rate": f"{row.get('learning_rate', 0.0):.2g}",
            **{f"{phase} s": _number(seconds.get(phase), 1) for phase in phases},
        }
    return {
        "step": str(steps_done(row)),
        "reward": _number(row.get("reward_mean")),
        **{term: _number(rewards.get(term)) for term in terms},
        "failed": _percent(row.get("failure_rate")),
        "lag": _lag(row),
        "tok/s": _number(row.get("tokens_per_s"), 0),
        **{f"{phase} s": _number(seconds.get(phase), 1) for phase in phases},
    }


def step_line(row: StepRow, num_steps: int | None, left: str | None = None) -> str:
    """A step in one line of 80 columns, with the time left to the end where it is known.

    What does not fit is left out, the seconds of a step first; `metrics.jsonl` has all.

    Example: `step 3/100  reward 2.134  failed 4%  lag 0.2/1  812 tok/s  3.4 s  0:05:30 left`
    """
    head = [f"step {steps_done(row)}/{num_steps or '-'}"]
    tail = [f"{left} left"] if left else []
    seconds = sum(row.get("phases_s", {}).values())
    if is_sft(row):
        head.append(f"loss {_number(row.get('loss'))}")
        middle = [f"learning rate {row.get('learning_rate', 0.0):.2g}", f"{seconds:,.1f} s"]
    else:
        head.append(f"reward {_number(row.get('reward_mean'))}")
        middle = [
            f"failed {_percent(row.get('failure_rate'))}",
            f"lag {_lag(row)}",
            f"{_number(row.get('tokens_per_s'), 0)} tok/s",
            f"{seconds:,.1f} s",
        ]
    return _fitting(head, middle, tail)


def _fitting(head: list[str], middle: list[str], tail: list[str]) -> str:
    """One line of all parts that have room; the last ones of the middle give way."""
    while middle and len("  ".join([*head, *middle, *tail])) > _LINE_WIDTH:
        middle.pop()
    return "  ".join([*head, *middle, *tail])


MEASURES = {
    "triplet_recall": "triplet recall",
    "triplet_f1": "F1",
    "mean_predicate_recall": "mean recall",
    "object_f1": "object F1",
}
"""Measures of a held-out evaluation; a task has some of them"""


def evaluation_line(row: Mapping[str, Any]) -> str:
    """A held-out evaluation in one line of 80 columns, with the versions that answered.

    Example: `evaluated version 40 (40 to 41), strict  triplet recall 0.213  F1 0.201  failed 3%`
    """
    answered = (row.get("policy_version_oldest"), row.get("policy_version_newest"))
    versions = sorted({version for version in answered if version is not None})
    return _fitting(
        [f"evaluated version {row.get('step')} ({' to '.join(map(str, versions))}), strict"],
        [f"{label} {_number(row[name])}" for name, label in MEASURES.items() if name in row],
        [f"failed {_percent(row.get('failure_rate'))}"],
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def _lag(row: StepRow) -> str:
    """Mean and maximum."""
    return f"{_number(row.get('policy_lag_mean'), 1)}/{_number(row.get('policy_lag_max'), 0)}"
