"""What a run shows while it goes on: the last steps, what it waits for, and its processes."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Self

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.views.activity import ActivityWatch, in_words
from launcher.views.run_columns import GAP, TREND_STEPS, fitting_columns, run_columns
from launcher.views.run_lines import evaluation_line, step_line
from launcher.views.terminal import LiveView, SafeConsole
from reward_service.rubrics import RUBRICS
from services.run_folder import (
    EvaluationRow,
    RunFolder,
    StepRow,
    TableFollower,
    steps_done,
    time_left,
)
from services.settings import Settings
from services.waiting import WaitNotice

_SHOWN_STEPS = 12
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
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Shows nothing yet.

        Args:
            folder: The run's; its files may come later.
            num_steps: The run's steps; None takes it from the metrics.
            states: Each process by name, as shown below the table.
            console: Where to.
            weights: Of the terms of the reward, as from `term_weights`.
        """
        super().__init__(console)
        self._steps = TableFollower[StepRow](folder.metrics)
        self._evaluations = TableFollower[EvaluationRow](folder.evaluations)
        self._by_version: dict[int, EvaluationRow] = {}
        self._evaluated: list[EvaluationRow] = []
        """Those that are said. A resumed run writes the ones up to its checkpoint again."""
        self._num_steps = num_steps
        self._states = states
        self._weights = weights or {}
        self._activity = ActivityWatch(folder, states)
        self._notice = WaitNotice(math.inf, self._print)
        self._rows: deque[StepRow] = deque(maxlen=_SHOWN_STEPS + 2 * TREND_STEPS)
        """Those that are shown, and those before them that their trends need."""
        self._printed: dict[int, StepRow] = {}
        """By step. A resumed run writes the steps up to its checkpoint again, unchanged."""

    def __enter__(self) -> Self:
        for row in self._steps.read().rows:  # of the run that is resumed
            self._add(row)
        self._new_evaluations()
        return super().__enter__()

    def update(self) -> None:
        """Read what is new and show it."""
        new = [row for row in self._steps.read().rows if self._add(row)]
        evaluations = self._new_evaluations()
        if self._live:
            self._live.update(Group(*self._parts()), refresh=True)
            return
        for row in new:
            left = self._left() if row is new[-1] else None
            self._print(step_line(row, self._total(row), left))
        for evaluation in evaluations:
            self._print(evaluation_line(evaluation))
        activity, seconds = self._activity.look()
        if activity is not None and activity.holds_up:
            self._notice.waited(seconds, activity.what + activity.how_far)

    def _new_evaluations(self) -> list[EvaluationRow]:
        """Those that say anything new. A resumed run writes a shorter file, and some again."""
        rows, cut = self._evaluations.read()
        if cut:
            self._by_version.clear()
        self._by_version |= {row.get("step", 0): row for row in rows}
        new = [row for row in rows if row not in self._evaluated]
        self._evaluated += new
        return new

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def _parts(self) -> Iterator[RenderableType]:
        yield Text(self._title(), style="bold")
        if self._rows:
            yield self._table()
        if self._by_version:
            yield Text(evaluation_line(self._by_version[max(self._by_version)]))
        activity, seconds = self._activity.look()
        if activity is not None:
            yield Text(in_words(activity, seconds))
        yield self._processes()

    def _total(self, row: StepRow) -> int | None:
        return self._num_steps or row.get("num_steps")

    def _left(self) -> str | None:
        """Time to the end at the pace of the shown steps, such as `1:02:03`."""
        left_s = time_left(self._rows, self._total(self._rows[-1]))
        return str(timedelta(seconds=round(left_s))) if left_s else None

    def _add(self, row: StepRow) -> bool:
        """Take up a row; later steps were rolled back. Whether it says anything new."""
        step = row.get("step", -1)
        while self._rows and self._rows[-1].get("step", -1) >= step:
            self._rows.pop()
        self._rows.append(row)
        is_new = self._printed.get(step) != row
        self._printed[step] = row
        return is_new

    def _title(self) -> str:
        if not self._rows:
            return f"no step of {self._num_steps} yet" if self._num_steps else "no step yet"
        total, left = self._total(self._rows[-1]), self._left()
        head = f"step {steps_done(self._rows[-1])} of {total or '?'}"
        return f"{head}, {left} left" if left else head

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
        every = run_columns(list(self._rows), _SHOWN_STEPS, self._by_version, self._weights)
        columns = fitting_columns(every, self._console.width)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for cells in zip(*columns.values(), strict=True):
            table.add_row(*cells)
        return table

    def _processes(self) -> Text:
        """Each with its state; a line ends between two of them."""
        text, room = Text(), self._console.width
        for name, state in self._states().items():
            if len(name) + len(state) + 1 > room and text:
                text.append("\n")
                room = self._console.width
            text.append(f"{name} ", style="bold")
            text.append(f"{state}   ", style=_COLOURS.get(state.split()[0], "red"))
            room -= len(name) + len(state) + 4
        return text


def term_weights(settings: Settings) -> Mapping[str, float]:
    """The weights of the run's rubric by term."""
    rubric = settings.reward.rubric
    if isinstance(rubric, str):
        return RUBRICS[rubric].terms if rubric in RUBRICS else {}
    terms: Mapping[str, float] = rubric.get("terms", {})
    return terms
