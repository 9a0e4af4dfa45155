"""The report's comparison of two evaluations."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evaluation.report.charts import shortened
from evaluation.report.svg import drawing, rect
from evaluation.report.tables import NONE, answer_label, measure_label, percent, sorted_keys
from evaluation.result import PROTOCOLS
from evaluation.scoring.compare import Comparison, Difference, PredicateChange
from scene_graph.drawing.svg import element

MAX_CHANGES = 24
"""Predicates that are drawn."""
_NAME = 120.0
"""Where their names end, in the units of the drawing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRow:
    """One difference in words."""

    label: str
    first: str
    second: str
    difference: str
    interval: str
    p_value: str
    certain: bool
    """The interval leaves 0 out"""


def compared_sections(compared: Comparison) -> dict[str, list[ChangeRow]]:
    """Rows of each protocol, by its name; those that no protocol changes are `objects, answers`."""
    sections: dict[str, list[ChangeRow]] = {}
    for protocol in (PROTOCOLS[0], None, *PROTOCOLS[1:]):
        by_key = {d.metric: d for d in compared.differences if d.protocol == protocol}
        keys = list(by_key) if protocol is None else sorted_keys(by_key)
        rows = [_row(by_key[key], key, answers=protocol is None) for key in keys]
        if rows:
            sections[protocol or "objects and answers"] = rows
    return sections


def _row(d: Difference, key: str, *, answers: bool) -> ChangeRow:
    # Counts of an image are as they are, shares in per cent.
    scale, digits = (1.0, 2) if key.endswith("_per_image") else (100.0, 1)
    low, high = d.interval or (0.0, 0.0)
    constraint = ", no graph constraint" if key.startswith("ng_") else ""
    return ChangeRow(
        label=answer_label(key) if answers else measure_label(key) + constraint,
        first=percent(d.first, scale=scale),
        second=percent(d.second, scale=scale),
        difference=NONE if d.difference is None else f"{scale * d.difference:+.2f}",
        interval=f"{scale * low:+.{digits}f} to {scale * high:+.{digits}f}" if d.interval else "",
        p_value=NONE if d.p_value is None else f"{d.p_value:.3f}",
        certain=d.interval is not None and (low > 0 or high < 0),
    )


def change_chart(changes: Sequence[PredicateChange]) -> Markup:
    """Bars of losses and gains in recall, from a line between them, greatest gain first.

    It is little wider than a phone, so that its letters are read there too.

    Args:
        changes: Drawn are those whose number of hits changed most: recall of a predicate that few
            references have moves far by chance.
    """
    moved = [c for c in changes if c.difference]
    moved.sort(key=lambda c: -abs(c.difference) * c.num_reference)
    drawn = sorted(moved[:MAX_CHANGES], key=lambda c: -c.difference)
    if not drawn:
        return Markup("")
    step, width, room = 20.0, 400.0, 48.0
    gain, loss = max(drawn[0].difference, 0.0), max(-drawn[-1].difference, 0.0)
    left = _NAME + 8 + (room if loss else 0.0)
    scale = (width - room - left) / (gain + loss)
    zero = left + loss * scale
    rows = [_bar(c, 6 + i * step, zero, scale) for i, c in enumerate(drawn)]
    height = step * len(drawn) + 12
    line = element("line", x1=zero, x2=zero, y1=0, y2=height, class_="axis")
    title = "Predicates that gained and lost most hits"
    return drawing(title, width, height, *rows, line)


def _bar(change: PredicateChange, y: float, zero: float, scale: float) -> Markup:
    length = abs(change.difference) * scale
    gain = change.difference > 0
    x = zero if gain else zero - length
    end, anchor = (x + length + 5, "start") if gain else (x - 5, "end")
    kind, text = "gained" if gain else "failed", f"{100 * change.difference:+.1f}"
    hint = (
        f"{percent(change.first)} to {percent(change.second)}, {change.num_reference:,} relations"
    )
    return element(
        "g",
        element("title", f"{change.predicate}: {hint}"),
        element("text", shortened(change.predicate), x=_NAME, y=y + 12, text_anchor="end"),
        rect(x, y, length, 15, f"bar {kind}"),
        element("text", text, x=end, y=y + 12, text_anchor=anchor),
    )
