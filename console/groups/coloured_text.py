"""A completion's own text, in which each part of the graph has the colour of its verdict."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from console.groups.difference import kind_of, reason_of
from reward_service.explain.answer_spans import answer_spans
from reward_service.explain.explainer import Explanation
from reward_service.explain.verdicts import ObjectLine, TripletLine
from scene_graph.notations.answer import Span
from services.printable import printable

MAX_TEXT = 20_000
"""Characters that are shown."""
MAX_WHY = 200
"""The same of a reason, which may name an object."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """Some of a text, fit for a page."""

    text: str
    verdict: str = ""
    """As in `console.groups.difference`, or `dropped`; empty for what is no part of the graph"""
    why: str = ""


def coloured_text(text: str, found: Explanation) -> list[TextPart]:
    """All of a text, in its order, up to `MAX_TEXT` characters.

    Args:
        text: The completion's.
        found: Its explanation.
    """
    spans = answer_spans(text, found.task, found.notation) if found.status == "ok" else {}
    marked = sorted(
        [
            *_marked("objects", spans.get("objects", []), found, found.objects),
            *_marked("relationships", spans.get("relationships", []), found, found.triplets),
        ],
        key=lambda mark: mark[0],
    )
    parts, end = [], 0
    for (first, last), verdict, why in marked:
        if last > MAX_TEXT:
            break
        parts += [TextPart(printable(text[end:first]))] if first > end else []
        parts.append(TextPart(printable(text[first:last]), verdict, why))
        end = last
    parts.append(TextPart(printable(text[end:MAX_TEXT])))
    if len(text) > MAX_TEXT:
        parts.append(TextPart(f" … ({len(text) - MAX_TEXT:,} more characters)"))
    return [part for part in parts if part.text]


def _marked(
    where: str,
    spans: list[Span],
    found: Explanation,
    lines: Sequence[ObjectLine | TripletLine],
) -> Iterator[tuple[Span, str, str]]:
    """Each entry of a list with its verdict: what was not dropped follows the order of `lines`."""
    dropped = {part.index: part for part in found.dropped if part.where == where}
    if len(spans) != len(lines) + len(dropped):  # a list that the task does not look at
        return
    kept = iter(lines)
    for index, span in enumerate(spans):
        if index in dropped:
            yield span, "dropped", f"dropped: {printable(dropped[index].why[:MAX_WHY])}"
        else:
            line = next(kept)
            yield span, kind_of(line), reason_of(line)
