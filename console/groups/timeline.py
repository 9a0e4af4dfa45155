"""A picture's rewards over a run, as a chart."""

from collections.abc import Sequence

from markupsafe import Markup
from services.run_folder.index_line import IndexLine

from evaluation.report.svg import Plot, Scale
from scene_graph.drawing.svg import element

_WIDTH, _HEIGHT = 640.0, 240.0


def reward_chart(lines: Sequence[IndexLine]) -> Markup:
    """Mean reward of each group by its step, with the range from its worst to its best answer.

    Empty where fewer than two groups have rewards.

    Args:
        lines: Of one picture, in the order of their steps.
    """
    scored = [line for line in lines if line.mean is not None]
    if len(scored) < 2:
        return Markup("")
    steps = [line.step for line in scored]
    lows = [line.mean if line.min is None else line.min for line in scored]
    highs = [line.mean if line.max is None else line.max for line in scored]
    low = min(0.0, *(value for value in lows if value is not None))
    high = max(value for value in highs if value is not None)
    edge = 0.04 * max(steps[-1] - steps[0], 1)
    plot = Plot(
        width=_WIDTH,
        height=_HEIGHT,
        x=Scale(low=steps[0] - edge, high=steps[-1] + edge, start=48, end=_WIDTH - 12),
        y=Scale(low=low, high=max(high, low + 1e-6), start=_HEIGHT - 44, end=12),
        x_title="step",
        y_title="reward",
    )
    places = [(plot.x(line.step), line) for line in scored]
    ranges = [
        element("line", x1=x, x2=x, y1=plot.y(line.min), y2=plot.y(line.max), class_="range")
        for x, line in places
        if line.min is not None and line.max is not None
    ]
    points = " ".join(f"{x:.1f},{plot.y(line.mean or 0.0):.1f}" for x, line in places)
    dots = [
        element(
            "circle",
            element("title", f"step {line.step}: mean {line.mean:.2f}"),
            cx=x,
            cy=plot.y(line.mean or 0.0),
            r=3.5,
            class_="dot",
        )
        for x, line in places
    ]
    curve = element("polyline", points=points, class_="curve")
    return plot.draw("Rewards of this picture by step", *ranges, curve, *dots)
