"""Places of the parts of an answer in the text as it was written."""

import re

from reward_service.explain.dropped_parts import DECODER, answer_place
from scene_graph.cleaning import Task
from scene_graph.notations import compact
from scene_graph.notations.answer import NotationName, Span

_SPACE = re.compile(r"[ \t\n\r]*")


def answer_spans(
    text: str, task: Task = "sgg", notation: NotationName = "json"
) -> dict[str, list[Span]]:
    """Where the entries of `objects` and `relationships` stand in a text whose status is `ok`.

    Example: `answer_spans('{"objects": [{"id": "man.1"}]}') == {"objects": [(13, 28)]}`
    """
    if notation == "compact":
        return _line_spans(text, task)
    at = _skip(text, answer_place(text)[0])
    spans: dict[str, list[Span]] = {}
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, at = DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)
        if text[at] == "[" and key in ("objects", "relationships"):
            spans[key], at = _entries(text, at)
        else:
            at = DECODER.raw_decode(text, at)[1]
        at = _skip(text, at)
        at = _skip(text, at + 1) if text[at] == "," else at
    return spans


def _line_spans(text: str, task: Task) -> dict[str, list[Span]]:
    start, answer = answer_place(text)
    found = compact.sections(answer, task)
    assert isinstance(found, compact.Sections)
    return {
        name: [(start + line.start, start + line.start + len(line.text)) for line in lines]
        for name, lines in found._asdict().items()
    }


def _entries(text: str, at: int) -> tuple[list[Span], int]:
    """The entries of the list that begins at a place, and where the list ends."""
    spans: list[Span] = []
    at = _skip(text, at + 1)
    while text[at] != "]":
        end = DECODER.raw_decode(text, at)[1]
        spans.append((at, end))
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return spans, at + 1


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()
