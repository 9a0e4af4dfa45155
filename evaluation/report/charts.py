"""The report's charts."""

from collections import Counter
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from evaluation.report.svg import Plot, Scale, drawing, rect, round_step
from evaluation.result import Confidence, PredicateRow
from scene_graph.drawing.svg import element

MAX_PREDICATES = 60
"""Bars that can still be read; an open vocabulary may have many more."""
NUM_CELLS = 32
"""Cells along each side of a two-dimensional histogram."""
NUM_BINS = 30
WIDTH, HEIGHT = 480.0, 300.0
"""Size of charts that stand beside one another."""


def predicate_chart(rows: Sequence[PredicateRow], groups: Mapping[str, dict[str, float]]) -> Markup:
    """Recall at 100 of each predicate: a bar for `strict`, a line across it for `sgb`.

    Args:
        rows: By falling frequency; the first `MAX_PREDICATES` are drawn.
        groups: head, body and tail to their mean recall by protocol, drawn as levels.
    """
    rows = rows[:MAX_PREDICATES]
    step = max(14.0, min(90.0, 900 / max(len(rows), 1)))
    left, foot = 52.0, 250.0
    names = max((len(shortened(row.predicate)) for row in rows), default=0)
    plot = Plot(
        width=left + step * len(rows) + 16,
        height=foot + 40 + 4.8 * names,  # of letters that stand at 55 degrees
        x=Scale(low=0, high=max(len(rows), 1), start=left, end=left + step * max(len(rows), 1)),
        y=Scale(low=0, high=100, start=foot, end=28),
        x_title="predicates, most frequent first",
        y_title="recall at 100 (%), bars strict",
    )
    bars = [_predicate(row, plot, i, step) for i, row in enumerate(rows)]
    levels = [
        _level(plot, rows, group, 100 * means["strict"])
        for group, means in groups.items()
        if "strict" in means
    ]
    size = f"min-width:{plot.width:.0f}px;max-width:{1.3 * plot.width:.0f}px"
    title = "Recall of each predicate, with the mean of head, body and tail"
    return plot.draw(title, *bars, *levels, x_ticks=False, style=size)


def _predicate(row: PredicateRow, plot: Plot, place: int, step: float) -> Markup:
    strict, sgb = row.recall.get("strict"), row.recall.get("sgb")
    left, foot = plot.x(place) + step * 0.15, plot.y(0)
    middle, width = plot.x(place + 0.5), step * 0.7
    parts = [element("title", _hint(row))]
    if strict is not None:
        top = plot.y(100 * strict)
        parts.append(rect(left, top, width, foot - top, f"bar {row.group}"))
    if sgb is not None:
        level = plot.y(100 * sgb)
        line = {"x1": left - 1, "x2": left + width + 1, "y1": level, "y2": level}
        parts.append(element("line", **line, class_="second"))
    turned = {"transform": f"rotate(-55 {middle:.1f} {foot + 12:.1f})", "text_anchor": "end"}
    parts.append(element("text", shortened(row.predicate), x=middle, y=foot + 12, **turned))
    return element("g", *parts)


def _level(plot: Plot, rows: Sequence[PredicateRow], group: str, mean: float) -> Markup:
    """The mean of a group over the places that it takes."""
    places = [i for i, row in enumerate(rows) if row.group == group]
    if not places:
        return Markup("")
    x1, x2, y = plot.x(min(places)), plot.x(max(places) + 1), plot.y(mean)
    text = f"{group}: mean {mean:.1f}"
    return element("line", x1=x1, x2=x2, y1=y, y2=y, class_="level") + element(
        "text", text, x=(x1 + x2) / 2, y=18, text_anchor="middle", class_="title"
    )


def _hint(row: PredicateRow) -> str:
    recalls = ", ".join(f"{name} {100 * value:.2f} %" for name, value in row.recall.items())
    return f"{row.predicate} ({row.group}; {row.num_reference:,} in the reference): {recalls}"


def shortened(name: str) -> str:
    """What fits beside a bar."""
    return name if len(name) <= 18 else name[:17] + "…"


def reason_bars(failures: Mapping[str, int], num_images: int) -> Markup:
    """A bar for each reason, longest first, with its count and share of all images."""
    reasons = sorted(failures.items(), key=lambda item: -item[1])
    step, left = 34.0, 130.0
    longest = max((count for _, count in reasons), default=1) or 1
    parts = []
    for i, (reason, count) in enumerate(reasons):
        y, width = 8 + i * step, (WIDTH - left - 110) * count / longest
        share = f"{count:,} ({100 * count / max(num_images, 1):.2f} %)"
        parts += [
            element("text", reason.replace("_", " "), x=left - 8, y=y + 16, text_anchor="end"),
            rect(left, y, max(width, 1), 22, "bar failed"),
            element("text", share, x=left + width + 6, y=y + 16),
        ]
    return drawing("Images without a graph, by reason", WIDTH, step * len(reasons) + 8, *parts)


def count_chart(pairs: Sequence[tuple[int, int]], noun: str) -> Markup:
    """How many images have so many `noun` in the reference (x) and in the prediction (y).

    Args:
        pairs: (reference, predicted) of each image, at least one.
        noun: In the plural.
    """
    side = max(1, round_step(max(1, *map(max, pairs)) / NUM_CELLS))
    high = (max(map(max, pairs)) // side + 1) * side
    plot = Plot(
        width=WIDTH,
        height=HEIGHT,
        x=Scale(low=0, high=high, start=52, end=WIDTH - 12),
        y=Scale(low=0, high=high, start=HEIGHT - 44, end=12),
        x_title=f"{noun} in the reference",
        y_title=f"{noun} predicted",
    )
    cells = Counter((int(x // side), int(y // side)) for x, y in pairs)
    most = max(cells.values())
    marks = []
    for (column, row), count in sorted(cells.items()):
        x, y = plot.x(column * side), plot.y((row + 1) * side)
        width, height = plot.x((column + 1) * side) - x, plot.y(row * side) - y
        places = f"{_span(column, side)} in the reference, {_span(row, side)} predicted"
        hint, opacity = f"{count:,} images: {places}", f"{0.2 + 0.8 * (count / most) ** 0.5:.2f}"
        marks.append(rect(x, y, width, height, "cell", hint, fill_opacity=opacity))
    ends = {"x1": plot.x(0), "y1": plot.y(0), "x2": plot.x(high), "y2": plot.y(high)}
    diagonal = element("line", **ends, class_="diagonal")
    return plot.draw(f"{noun} in the reference and predicted", *marks, diagonal)


def _span(place: int, side: float) -> str:
    low, high = int(place * side), int((place + 1) * side) - 1
    return str(low) if low == high else f"{low} to {high}"


def length_chart(with_graph: Sequence[int], without: Sequence[int]) -> Markup:
    """Completions by length, those without a graph on top of the others; at least one."""
    longest = max([*with_graph, *without])
    side = max(1.0, round_step((longest + 1) / NUM_BINS))
    bins = int(longest // side) + 1
    good, bad = (Counter(int(n // side) for n in lengths) for lengths in (with_graph, without))
    tallest = max(good[i] + bad[i] for i in range(bins))
    plot = Plot(
        width=WIDTH,
        height=HEIGHT,
        x=Scale(low=0, high=bins * side, start=52, end=WIDTH - 16),
        y=Scale(low=0, high=tallest * 1.05, start=HEIGHT - 44, end=12),
        x_title="tokens of the completion",
        y_title="images",
    )
    marks = [
        _column(plot, i * side, side, floor, count, kind)
        for i in range(bins)
        for floor, count, kind in ((0, good[i], "head"), (good[i], bad[i], "failed"))
        if count
    ]
    return plot.draw("Lengths of the completions", *marks)


def calibration_chart(confidence: Mapping[str, Confidence]) -> Markup:
    """The share that is right among predictions of a score: on the diagonal where it is the score.

    Args:
        confidence: By kind; those whose scores are shares are drawn.
    """
    plot = _shares_plot("mean score of a fifteenth of the predictions", "share that hits")
    lines = [
        _curve(plot, kind, [(b.score, b.share_right) for b in found.bins])
        for kind, found in confidence.items()
    ]
    ends = {"x1": plot.x(0), "y1": plot.y(0), "x2": plot.x(1), "y2": plot.y(1)}
    diagonal = element("line", **ends, class_="diagonal")
    return plot.draw("Scores and the share that hits", diagonal, *lines)


def risk_chart(confidence: Mapping[str, Confidence]) -> Markup:
    """How many of the best by score are wrong, the more of them are taken."""
    plot = _shares_plot(
        "share of the predictions, best score first", "share of these that is wrong"
    )
    lines = [_curve(plot, kind, found.risk_at_coverage) for kind, found in confidence.items()]
    return plot.draw("Risk and coverage", *lines)


def _shares_plot(x_title: str, y_title: str) -> Plot:
    return Plot(
        width=WIDTH,
        height=HEIGHT,
        x=Scale(low=0, high=1, start=52, end=WIDTH - 12),
        y=Scale(low=0, high=1, start=HEIGHT - 44, end=12),
        x_title=x_title,
        y_title=y_title,
    )


def _curve(plot: Plot, kind: str, points: Sequence[tuple[float, float]]) -> Markup:
    """A line through points in 0..1, with what each one says under the pointer."""
    places = [(plot.x(x), plot.y(y)) for x, y in points]
    line = element(
        "polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), class_=f"curve {kind}"
    )
    dots = [
        element(
            "circle",
            element("title", f"{kind}: {x:.3f}, {y:.3f}"),
            cx=left,
            cy=top,
            r=3,
            class_=f"dot {kind}",
        )
        for (x, y), (left, top) in zip(points, places, strict=True)
    ]
    return Markup("").join([line, *dots])


def _column(plot: Plot, low: float, side: float, floor: int, count: int, kind: str) -> Markup:
    what = "without a graph" if kind == "failed" else "with a graph"
    hint = f"{count:,} {what}, {low:,.0f} to {low + side - 1:,.0f} tokens"
    x, top = plot.x(low), plot.y(floor + count)
    width, height = plot.x(low + side) - x - 1, plot.y(floor) - top
    return rect(x + 0.5, top, width, height, f"bar {kind}", hint)
