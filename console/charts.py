"""A value with an interval over a run's steps, as a chart of the report's kind."""

from collections.abc import Sequence

from markupsafe import Markup

from evaluation.report.svg import Plot, Scale
from scene_graph.drawing.svg import element

_WIDTH, _HEIGHT = 400.0, 180.0
"""Little wider than a phone, so that its letters are read there too."""


def value_chart(
    points: Sequence[tuple[int, float, float, float]], title: str, y_title: str
) -> Markup:
    """Values by step, with a bar from low to high at each; empty under two points.

    Args:
        points: Step, value, low and high, in the order of the steps.
        title: What it shows, for those who do not see it.
        y_title: What the values are.
    """
    if len(points) < 2:
        return Markup("")
    steps = [step for step, _, _, _ in points]
    edge = 0.04 * max(steps[-1] - steps[0], 1)
    low = min(0.0, *(low for _, _, low, _ in points))
    high = max(high for _, _, _, high in points)
    plot = Plot(
        width=_WIDTH,
        height=_HEIGHT,
        x=Scale(low=steps[0] - edge, high=steps[-1] + edge, start=48, end=_WIDTH - 12, whole=True),
        y=Scale(low=low, high=max(high, low + 1e-6), start=_HEIGHT - 44, end=12),
        x_title="step",
        y_title=y_title,
    )
    places = [(plot.x(step), *map(plot.y, values), step) for step, *values in points]
    ranges = [
        element("line", x1=x, x2=x, y1=bottom, y2=top, class_="range")
        for x, _, bottom, top, _ in places
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _, _ in places)
    dots = [
        element(
            "circle", element("title", f"step {step}: {value:.3f}"), cx=x, cy=y, r=3.5, class_="dot"
        )
        for (x, y, _, _, step), (_, value, _, _) in zip(places, points, strict=True)
    ]
    return plot.draw(title, *ranges, element("polyline", points=line, class_="curve"), *dots)
