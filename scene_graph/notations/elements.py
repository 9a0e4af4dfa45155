"""The elements of a text in the order of writing: how much of a graph stands after each of them.

What is found up to a place depends on nothing behind it, so that learning may give each element its
own part of a reward (`reward_service.credit`): a text that fails in the end has the elements that
it had until then. Therefore only a text that begins with its answer, or with thinking that was
asked for, has elements; and they end where JSON stops being plain: no escapes in its strings, no
other keys, the keys in the order of `json_text.write`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from scene_graph.cleaning import Task, clean_columns
from scene_graph.graph import NORMAL_IDS, GraphColumns
from scene_graph.notations.answer import (
    MAX_OBJECTS,
    MAX_RELATIONSHIPS,
    Answer,
    Lists,
    NotationName,
    Span,
)
from scene_graph.notations.notation import NOTATIONS


class Elements(NamedTuple):
    """K complete entries of a text, objects first; later ones are no elements.

    Example: `{"objects": [{"id": "man.1", "bbox": [0, 0, 5, 9]}` has one, from 13 to 50.
    """

    spans: list[Span]
    """[K] characters of the text; at the end of one it is known that it is complete."""
    num_objects: int
    """Those of the K that are objects."""
    columns: GraphColumns
    """The graph that they are."""
    kept: list[int]
    """Which of the K each object (not for `cls`) and then each triplet of `columns` is; others were
    dropped."""


def read_elements(
    text: str,
    scale: tuple[float, float],
    task: Task = "sgg",
    notation: NotationName = "json",
    *,
    thinking: bool = False,
) -> Elements:
    """The complete elements of any text, perhaps none; never raises.

    Args:
        text: All that a model wrote, or the first part of it.
        scale: As in `clean_columns`.
        task: `det` has no relationships; `cls` has no objects.
        notation: What it was asked to write.
        thinking: Whether it was asked to think first.
    """
    start = _answer_start(text, thinking)
    found = None if start is None else _SCANNERS[notation](text, start, task)
    if found is None or not (found.objects or found.relationships):
        return Elements([], 0, GraphColumns(scale=scale), [])
    answer = Answer(found.closed, True, False, False)
    lists = NOTATIONS[notation].read(answer, task)
    columns, _ = clean_columns(lists.objects, lists.relationships, scale, task)
    objects = [] if task == "cls" else found.objects
    spans = objects + found.relationships
    return Elements(spans, len(objects), columns, _kept(lists, columns, task))


class _Scan(NamedTuple):
    """Where the elements of each list stand, and a whole answer that has them and nothing else."""

    objects: list[Span]
    relationships: list[Span]
    closed: str


_THINKING = re.compile(r"\s*<think>")
_PREFIX = re.compile(r"\s*(?:<answer>\s*)?(?:```[A-Za-z0-9_-]*\s*)?")


def _answer_start(text: str, thinking: bool) -> int | None:
    start = 0
    if thinking or _THINKING.match(text):
        start = text.find("</think>") + len("</think>")
        if start < len("</think>"):
            return None
    found = _PREFIX.match(text, start)
    assert found is not None  # it matches nothing, too
    return found.end()


_PARTS = {"STRING": r'"[^"\\\x00-\x1f]*+"', "NUMBER": r"-?(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,17})?"}


def _plain(template: str) -> str:
    """What JSON of this form looks like, with any white space around its parts."""
    parts = (_PARTS.get(part) or re.escape(part) for part in template.split(" "))
    return r"[ \t\n\r]*".join(parts)


def _entry(template: str) -> re.Pattern[str]:
    """An entry of a list, and the comma behind it if there is one."""
    return re.compile(f"({_plain(template)})(?:{_plain(' , ')})?")


_OBJECT = _entry('{ "id" : STRING , "bbox" : [ NUMBER , NUMBER , NUMBER , NUMBER ] }')
_RELATIONSHIP = _entry('{ "subject" : STRING , "predicate" : STRING , "object" : STRING }')
_FIRST_KEY = {
    "objects": re.compile(_plain('{ "objects" : [ ')),
    "relationships": re.compile(_plain('{ "relationships" : [ ')),
}
_NEXT_KEY = re.compile(_plain(' ] , "relationships" : [ '))


def _scan_json(text: str, start: int, task: Task) -> _Scan | None:
    at, objects, relationships = start, list[Span](), list[Span]()
    opened = _FIRST_KEY["objects"].match(text, start)
    if opened:
        objects = _json_entries(text, opened.end(), _OBJECT, MAX_OBJECTS)
        at = objects[-1][1] if objects else opened.end()
        opened = _NEXT_KEY.match(text, at)
    elif task == "cls":  # which a policy that knows `sgg` answers as that
        opened = _FIRST_KEY["relationships"].match(text, start)
    if opened and task != "det":
        relationships = _json_entries(text, opened.end(), _RELATIONSHIP, MAX_RELATIONSHIPS)
    if relationships:
        return _Scan(objects, relationships, text[start : relationships[-1][1]] + "]}")
    return _Scan(objects, [], text[start:at] + '],"relationships":[]}') if objects else None


def _json_entries(text: str, at: int, entry: re.Pattern[str], most: int) -> list[Span]:
    """The spans of a list's plain entries, up to `most`."""
    spans: list[Span] = []
    while len(spans) < most and (found := entry.match(text, at)):
        spans.append(found.span(1))
        at = found.end()
        if at == spans[-1][1]:
            break
    return spans


_MOST = {"objects": MAX_OBJECTS, "relationships": MAX_RELATIONSHIPS}


def _scan_compact(text: str, start: int, task: Task) -> _Scan | None:
    """Every line of a list is an entry, whatever it says; it is complete with its line break."""
    lists: dict[str, list[Span]] = {"objects": [], "relationships": []}
    following = {"": "objects", "objects": "relationships"}
    where, end = "", start
    for begin, end_of_line, line in _lines(text, start):
        if line == following.get(where):
            if task == "det" and where:
                break
            where = line
        elif not where or line == "end" or "<" in line or "`" in line:
            break  # the answer ends, or is none, or a tag or fence may end it
        elif len(lists[where]) == _MOST[where]:
            break
        else:
            lists[where].append((begin, end_of_line))
        end = end_of_line
    if not where:
        return None
    middle = "" if where == "relationships" or task == "det" else "relationships\n"
    return _Scan(lists["objects"], lists["relationships"], f"{text[start:end]}{middle}end")


def _lines(text: str, start: int) -> Iterator[tuple[int, int, str]]:
    """Begin, end and text of each line that is not blank, up to the last line break."""
    while (end := text.find("\n", start)) >= 0:
        line = text[start:end]
        if stripped := line.strip():
            yield start + line.index(stripped[0]), end + 1, stripped
        start = end + 1


_SCANNERS = {"json": _scan_json, "compact": _scan_compact}


def _kept(lists: Lists, columns: GraphColumns, task: Task) -> list[int]:
    """Places of what is kept: the first of equal entries, so a walk along both lists finds each."""
    normal, width = NORMAL_IDS, len(lists.objects)
    if task == "cls":
        objects, width = list[int](), 0
    elif len(columns.ids) == width:
        objects = list(range(width))
    else:
        boxes = zip(*(iter(columns.coordinates),) * 4, strict=True)
        objects = _walk(
            [e and (normal[e.id][0], tuple(e.bbox)) for e in lists.objects],
            list(zip(columns.ids, boxes, strict=True)),
        )
    if len(columns.predicates) == len(lists.relationships):
        return objects + list(range(width, width + len(lists.relationships)))
    triplets = _walk(
        [
            e and (normal[e.subject][0], normal[e.predicate][0], normal[e.object][0])
            for e in lists.relationships
        ],
        [
            (columns.ids[s], p, columns.ids[o])
            for s, p, o in zip(columns.subjects, columns.predicates, columns.objects, strict=True)
        ],
    )
    return objects + [width + place for place in triplets]


def _walk(entries: Sequence[Any], kept: Sequence[Any]) -> list[int]:
    """The place of each kept value among entries; it is there, behind the one before."""
    places: list[int] = []
    for place, entry in enumerate(entries):
        if len(places) < len(kept) and entry == kept[len(places)]:
            places.append(place)
    return places
