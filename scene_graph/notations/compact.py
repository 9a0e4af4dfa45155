"""The compact notation: a line for each object and each relationship.

A man on a horse, with a label, a name and a box for each object:

    objects
    A man 100 200 300 400
    B horse 0 0 1000 500
    relationships
    A riding B
    end

The task `det` has no relationships; `cls` has objects without boxes. A label is the number of an id
in letters, A to Z, then AA and on, so that `A man` is `man.1`. A name with a dot in it is a whole
id, and a JSON string may stand for any id or predicate. The last line says that nothing was cut.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from scene_graph.cleaning import TASK_LISTS, Task
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.notations.answer import (
    COORDINATE,
    MAX_OBJECTS,
    MAX_RELATIONSHIPS,
    Answer,
    Lists,
    Status,
    pattern_rule,
)

EXAMPLES = {"objects": "A man 100 200 300 400", "relationships": "A riding B"}
"""A line of each list, for messages"""

_LABEL = re.compile(r"[A-Z]{1,4}")
_LAST_NUMBER = 26 + 26**2 + 26**3 + 26**4
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WRITTEN_OUT = re.compile(r'["<`]')
"""In a name it begins a string, or may be part of a tag or fence, which `find_answer` takes off."""


class Line(NamedTuple):
    """A line of an answer without the spaces around it."""

    text: str
    start: int
    """Its place in the answer"""


class Sections(NamedTuple):
    """The lines of the two lists."""

    objects: list[Line]
    relationships: list[Line]


class Broken(NamedTuple):
    """Why an answer has no lists."""

    status: Status
    message: str
    at: int
    """The place in the answer that shows it"""
    stops_early: bool = False
    """The last line is not there"""


def write(graph: SceneGraph, task: Task) -> str:
    """The text of a graph whose boxes are in the space to write them in.

    Raises:
        ValueError: A relationship has an end that is no object, so that no label stands for it.
    """
    objects = _ends(graph) if task == "cls" else list(graph.objects)
    numbers = _numbers([item.id for item in objects])
    labels: dict[str, str] = {}
    lines = ["objects"]
    for item, number in zip(objects, numbers, strict=True):
        label = label_of(number)
        labels.setdefault(item.id, label)
        box = "" if task == "cls" else " " + " ".join(map(json.dumps, item.bbox))
        lines.append(f"{label} {_written_id(item.id, number)}{box}")
    if "relationships" in TASK_LISTS[task]:
        lines.append("relationships")
        for edge in graph.relationships:
            if missing := {edge.subject, edge.object} - labels.keys():
                raise ValueError(f"a relationship has the end {min(missing)!r}, which is no object")
            predicate = edge.predicate if _is_bare(edge.predicate) else _string(edge.predicate)
            lines.append(f"{labels[edge.subject]} {predicate} {labels[edge.object]}")
    return "\n".join([*lines, "end"])


def read(answer: Answer, task: Task) -> Lists:
    """What any text says, or why it says nothing. An unknown label is the id of no object."""
    found = sections(answer.text, task)
    if isinstance(found, Broken):
        return Lists(found.status, truncated=found.stops_early and not answer.finished)
    objects: list[SceneObject | None] = []
    ids: dict[str, str] = {}
    for line in found.objects:
        item = _read_object(line.text, task)
        objects.append(item)
        if item is not None:
            ids.setdefault(line.text.partition(" ")[0], item.id)
    edges = [_read_relationship(line.text, ids) for line in found.relationships]
    return Lists("ok", objects, edges)


def read_values(answer: Answer, task: Task) -> tuple[list[Any], list[Any]]:
    """The entries of an answer whose status is `ok`, as JSON has them; else the line."""
    found, lists = sections(answer.text, task), read(answer, task)
    assert isinstance(found, Sections)
    objects: list[Any] = [
        line.text if item is None else {"id": item.id, "bbox": list(item.bbox)}
        for line, item in zip(found.objects, lists.objects, strict=True)
    ]
    relationships: list[Any] = [
        line.text
        if edge is None
        else {"subject": edge.subject, "predicate": edge.predicate, "object": edge.object}
        for line, edge in zip(found.relationships, lists.relationships, strict=True)
    ]
    return objects, relationships


def sections(text: str, task: Task) -> Sections | Broken:
    """The lines of each list; what they say is not looked at."""
    lines = [line for line in _lines(text) if line.text]
    texts = [line.text for line in lines]
    if "objects" not in texts:
        return Broken("no_answer", "the answer has no line `objects`", 0)
    if texts[0] != "objects":
        message = "the answer does not begin with the line `objects`"
        return Broken("invalid_json", message, lines[0].start)
    if "end" not in texts:
        return Broken("invalid_json", "the answer has no line `end`", len(text), stops_early=True)
    end = texts.index("end")
    if end + 1 < len(texts):
        message = "the answer goes on after the line `end`"
        return Broken("invalid_json", message, lines[end + 1].start)
    middle = texts.index("relationships") if "relationships" in texts else None
    if middle is None and task != "det":
        return Broken(
            "schema_violation", "the answer has no line `relationships`", lines[end].start
        )
    if middle is None or task == "det":
        return Sections(lines[1 : middle or end], [])
    return Sections(lines[1:middle], lines[middle + 1 : end])


def label_of(number: int) -> str:
    """A number from 1 on in letters, as columns of a spreadsheet have them: 27 is `AA`."""
    letters = ""
    while number:
        number, last = divmod(number - 1, 26)
        letters = chr(ord("A") + last) + letters
    return letters


def number_of(label: str) -> int:
    """The number that `label_of` writes so."""
    number = 0
    for letter in label:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number


def grammar(task: Task) -> str:
    """As `Notation.grammar`; a label may be unknown."""
    box = "" if task == "cls" else f" {COORDINATE}" * 4
    lists = f'"\\nobjects\\n" object{{0,{MAX_OBJECTS}}}'
    rules = [pattern_rule("object", rf"{_PLAIN_LABEL} {_PLAIN_NAME}{box}\n")]
    if task != "det":
        lists += f' "relationships\\n" relationship{{0,{MAX_RELATIONSHIPS}}}'
        line = rf"{_PLAIN_LABEL} {_PLAIN_NAME} {_PLAIN_LABEL}\n"
        rules.append(pattern_rule("relationship", line))
    return "\n".join([f'graph ::= {lists} "end\\n"', *rules])


_PLAIN_LABEL = "[A-Z]{1,2}"
_PLAIN_WORD = "[A-Za-z][A-Za-z0-9'-]{0,19}"
_PLAIN_NAME = f"{_PLAIN_WORD}( {_PLAIN_WORD}){{0,4}}"


def _lines(text: str) -> Iterator[Line]:
    at = 0
    for line in text.split("\n"):
        yield Line(line.strip(), at + len(line) - len(line.lstrip()))
        at += len(line) + 1


def _read_object(line: str, task: Task) -> SceneObject | None:
    label, _, rest = line.partition(" ")
    if task == "cls":
        id_ = _read_id(rest, label)
        return None if id_ is None else SceneObject(id=id_, bbox=(0.0, 0.0, 1.0, 1.0))
    name, *box = rest.rsplit(None, 4) or [""]
    id_ = _read_id(name, label)
    if id_ is None or len(box) != 4 or not all(map(_NUMBER.fullmatch, box)):
        return None
    x1, y1, x2, y2 = map(float, box)
    return SceneObject(id=id_, bbox=(x1, y1, x2, y2))


def _read_relationship(line: str, ids: Mapping[str, str]) -> Relationship | None:
    subject, _, rest = line.partition(" ")
    predicate, _, object_ = rest.rpartition(" ")
    name = _read_string(predicate) if predicate.lstrip().startswith('"') else predicate
    if name is None or not _LABEL.fullmatch(subject) or not _LABEL.fullmatch(object_):
        return None
    # An id without a name: no object has it.
    ends = (ids.get(end) or f".{end}" for end in (subject, object_))
    return Relationship(subject=next(ends), predicate=name, object=next(ends))


def _read_id(text: str, label: str) -> str | None:
    """The id of an object; None where the line has a number too many, no name or no label."""
    text = text.strip()
    if not text or not _LABEL.fullmatch(label):
        return None
    if text.startswith('"'):
        return _read_string(text)
    if _NUMBER.fullmatch(text.rpartition(" ")[2]):
        return None
    return text if "." in text else f"{text}.{number_of(label)}"


def _read_string(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _ends(graph: SceneGraph) -> list[SceneObject]:
    """The objects that a relationship names, in the order of the graph; all that `cls` writes."""
    used = {end for edge in graph.relationships for end in (edge.subject, edge.object)}
    return [item for item in graph.objects if item.id in used]


def _numbers(ids: list[str]) -> list[int]:
    """Those of the ids where each has one of its own; else places, from 1 on."""
    texts = [name.rpartition(".")[2] for name in ids]
    plain = [int(text) for text in texts if re.fullmatch("[1-9][0-9]{0,5}", text)]
    if len(set(plain)) == len(ids) and all(number <= _LAST_NUMBER for number in plain):
        return plain
    return list(range(1, len(ids) + 1))


def _written_id(name: str, number: int) -> str:
    category, _, own = name.rpartition(".")
    if own == str(number) and "." not in category and _is_bare(category):
        return category
    return name if "." in name and _is_bare(name) else _string(name)


def _is_bare(name: str) -> bool:
    """Whether a name can stand as it is: read again, it is the same."""
    return (
        bool(name)
        and name.isprintable()
        and name == " ".join(name.split())
        and not _WRITTEN_OUT.search(name)
        and not _NUMBER.fullmatch(name.rpartition(" ")[2])
    )


def _string(name: str) -> str:
    text = json.dumps(name)
    return text.replace("<", "\\u003c").replace("`", "\\u0060")
