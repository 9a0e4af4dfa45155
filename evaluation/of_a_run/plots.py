"""Pictures of a run's metrics: panels above one axis of steps, each with one unit."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from services.printable import printable
from services.run_folder import EvaluationRow, RunFolder, StepRow, TableFollower, steps_done

SMOOTHING = 9
"""Steps of the running mean drawn over the single steps."""
_HELDOUT = ("triplet_recall", "triplet_f1", "object_f1")
"""Scores of held-out images that are drawn, each where the task has it."""
_WIDTH, _HEIGHT, _PANEL_HEIGHT = 8.0, 4.5, 2.1
"""Inches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A curve."""

    label: str
    steps: list[int]
    values: list[float]
    bounds: list[tuple[float, float]] = field(default_factory=list)
    """The interval of each value, where they are points with intervals"""
    style: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """Curves of one unit."""

    title: str
    unit: str
    lines: list[_Line]
    is_log: bool = False
    stacked: bool = False
    limits: tuple[float, float] | None = None

    def draw(self, axes: Axes) -> None:
        if self.stacked:
            every = [line.values for line in self.lines]
            axes.stackplot(self.lines[0].steps, every, labels=[line.label for line in self.lines])
        else:
            for line in self.lines:
                _draw(axes, line)
        axes.set_title(self.title, fontsize="medium", loc="left")
        axes.set_ylabel(self.unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if self.is_log:
            axes.set_yscale("log")
            for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                ticks(StrMethodFormatter("{x:g}"))
        if self.limits:
            axes.set_ylim(*self.limits)
        axes.grid(alpha=0.3)
        if len(self.lines) > 1:
            axes.legend(fontsize="small", ncols=2 if len(self.lines) > 4 else 1, loc="best")


def write_plots(folder: RunFolder) -> list[Path]:
    """Draw `plots/*.png` from `metrics.jsonl` and `evaluations.jsonl`; nothing without steps.

    `learning.png` has what says whether a run learns: reward, held-out scores with their 95 %
    intervals, gradient norm, distance to the sampler, clipped tokens; of SFT the loss.
    """
    rows = TableFollower[StepRow](folder.metrics).read().rows
    evaluations = TableFollower[EvaluationRow](folder.evaluations).read().rows
    if not rows:
        return []
    folder.plots.mkdir(exist_ok=True)
    title = printable(folder.path.absolute().name)
    pictures = {
        "reward": [_reward(rows)],
        "terms": [_terms(rows)],
        "phases": [_phases(rows)],
        "learning": [_reward(rows), _heldout(evaluations), *_optimizer(rows)],
    }
    drawn = {name: [panel for panel in panels if panel.lines] for name, panels in pictures.items()}
    return [
        _save(folder.plots / f"{name}.png", title, panels)
        for name, panels in drawn.items()
        if panels
    ]


def _save(file: Path, title: str, panels: Sequence[_Panel]) -> Path:
    height = _HEIGHT if len(panels) == 1 else _PANEL_HEIGHT * len(panels) + 0.7
    shape = {"figsize": (_WIDTH, height), "dpi": 110, "layout": "constrained"}
    figure, grid = plt.subplots(len(panels), sharex=True, squeeze=False, **shape)
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        panel.draw(axes)
    grid[-1, 0].set_xlabel("steps done")
    figure.suptitle(title, fontweight="bold", parse_math=False)
    draft = file.with_suffix(f".{os.getpid()}.draft")  # somebody may look at the picture
    figure.savefig(draft, format="png")
    plt.close(figure)
    return draft.replace(file)


def _draw(axes: Axes, line: _Line) -> None:
    if not line.bounds:
        marker = "." if len(line.steps) < 3 else None  # one step alone is no line
        axes.plot(line.steps, line.values, label=line.label, marker=marker, **line.style)
        return
    ends = list(zip(line.values, line.bounds, strict=True))
    below = [max(0.0, value - low) for value, (low, _) in ends]
    above = [max(0.0, high - value) for value, (_, high) in ends]
    style: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1, "capsize": 3}
    axes.errorbar(line.steps, line.values, (below, above), label=line.label, **style)


def _reward(rows: Sequence[StepRow]) -> _Panel:
    single = _line(rows, "reward_mean", label="each step", alpha=0.35, color="tab:blue")
    mean = [_smooth(line, f"mean of {SMOOTHING} steps", alpha=1) for line in single]
    return _Panel(
        title="Mean reward of the sampled completions", unit="reward", lines=[*single, *mean]
    )


def _terms(rows: Sequence[StepRow]) -> _Panel:
    names = _names(rows, "reward_terms")
    lines = [line for name in names for line in _line(rows, name, "reward_terms")]
    lines += _line(rows, "failure_rate", label="parse failures", color="black", ls=":")
    title = f"Reward terms before their weights (mean of {SMOOTHING} steps)"
    smooth = [_smooth(line) for line in lines]
    return _Panel(title=title, unit="share", lines=smooth, limits=(0, 1))


def _phases(rows: Sequence[StepRow]) -> _Panel:
    timed = [row for row in rows if row.get("phases_s")]
    steps = [steps_done(row) for row in timed]
    lines = [
        _Line(label=name, steps=steps, values=[row["phases_s"].get(name, 0.0) for row in timed])
        for name in sorted(_names(timed, "phases_s"))
    ]
    title = "Where the trainer's time goes"
    return _Panel(title=title, unit="seconds of a step", lines=lines, stacked=True)


def _heldout(rows: Sequence[EvaluationRow]) -> _Panel:
    lines = [line for name in _HELDOUT if (line := _scores(rows, name)).values]
    images = {row["num_images"] for row in rows if "num_images" in row}
    number = f"{max(images):,} " if images else ""
    title = f"Held-out: strict, {number}images, with 95 % intervals"
    return _Panel(title=title, unit="share", lines=lines)


def _scores(rows: Sequence[EvaluationRow], name: str) -> _Line:
    """Rows of earlier releases have no intervals."""
    points = [
        (row["step"], value, (row.get("intervals") or {}).get(name, (value, value)))
        for row in rows
        if isinstance(value := row.get(name), int | float)
    ]
    return _Line(
        label=name.replace("_", " ").replace(" f1", " F1"),
        steps=[step for step, _, _ in points],
        values=[value for _, value, _ in points],
        bounds=[bounds for _, _, bounds in points],
    )


def _optimizer(rows: Sequence[StepRow]) -> Iterable[_Panel]:
    is_sft = not any("reward_mean" in row for row in rows)
    yield _Panel(
        title="Loss of the answers' tokens",
        unit="nats",
        lines=_line(rows, "loss") if is_sft else [],
    )
    yield _Panel(
        title="Gradient norm before clipping",
        unit="norm",
        lines=_line(rows, "grad_norm"),
        is_log=True,
    )
    yield _Panel(
        title="Distance of trainer and sampler: KL(sampler, trainer) of a token",
        unit="nats",
        lines=_line(rows, "mismatch_kl"),
    )
    yield _Panel(title="Clipped tokens", unit="share", lines=_line(rows, "clip_fraction"))


def _line(
    rows: Sequence[StepRow], name: str, group: str = "", label: str = "", **style: Any
) -> list[_Line]:
    """A number of those steps that have it, if any."""
    found: list[tuple[int, float]] = []
    for row in rows:
        values: Mapping[str, Any] = row
        value = (values.get(group) or {} if group else values).get(name)
        if isinstance(value, int | float) and isfinite(value):
            found.append((steps_done(row), float(value)))
    steps, numbers = [step for step, _ in found], [number for _, number in found]
    return [_Line(label=label or name, steps=steps, values=numbers, style=style)] if found else []


def _names(rows: Sequence[StepRow], group: str) -> list[str]:
    """The names of nested numbers, in the order in which they come."""
    every: Iterable[Mapping[str, Any]] = rows
    return list(dict.fromkeys(name for row in every for name in row.get(group) or ()))


def _smooth(line: _Line, label: str = "", **style: Any) -> _Line:
    half = SMOOTHING // 2
    windows = (line.values[max(0, i - half) : i + half + 1] for i in range(len(line.values)))
    means = [sum(window) / len(window) for window in windows]
    return _Line(
        label=label or line.label, steps=line.steps, values=means, style={**line.style, **style}
    )
