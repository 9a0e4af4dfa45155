"""What is wrong in a completion, in words: for people, not for scores.

`scene_graph.parsing` gives a status and counts dropped parts by reason. These words are finer: they
name the key or the kind of value that stands where another was asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scene_graph.cleaning import TASK_LISTS, Task, read_object, read_relationship
from scene_graph.notations import compact
from scene_graph.notations.answer import NotationName
from scene_graph.notations.json_text import json_value
from scene_graph.parsing import ParsedCompletion, find_answer

CUT_SHORT: Mapping[NotationName, str] = {
    "json": "the answer stops inside its JSON",
    "compact": "the answer stops before its line `end`",
}
_STATUS_WORDS = {
    "no_answer": "the answer has no JSON",
    "invalid_json": "the answer is not JSON",
    "too_large": "the answer is over the limits on size",
}
DROPPED_WORDS: Mapping[str, str] = {
    "non_finite_box": "a coordinate is infinite, or beyond a million",
    "inverted_box": "x2 <= x1 or y2 <= y1",
    "duplicate_id": "an earlier object has this id",
    "dangling_relationship": "an end is no object of the graph",
    "repeated_triplet": "an earlier relationship says the same",
}
"""Reasons of `ParsedCompletion.dropped` that need no look at the part."""
_REASONS: Mapping[str, tuple[str, ...]] = {
    "objects": ("malformed_object", "non_finite_box", "inverted_box", "duplicate_id"),
    "relationships": ("malformed_relationship", "dangling_relationship", "repeated_triplet"),
}
_SHOWN_KEYS, _SHOWN_LETTERS = 6, 24


def main_fault(text: str, parsed: ParsedCompletion, task: Task = "sgg") -> str | None:
    """The reason why a completion gives no graph, or only the smaller part of one.

    Completions with the same mistake get the same words. Example: for objects with the key
    `bbox_2d` it is `malformed_object: no bbox, but bbox_2d`.

    Args:
        text: The completion.
        parsed: The same, read.
        task: The run's.

    Returns:
        None where at least half of the entries of each list could be used.
    """
    if parsed.truncated:
        return CUT_SHORT[parsed.notation]
    if parsed.notation == "compact" and parsed.status not in ("ok", "too_large"):
        return lines_fault(text, task).message
    if parsed.status == "schema_violation":
        return schema_fault(json_value(find_answer(text).text), task)
    if parsed.status != "ok":
        return _STATUS_WORDS[parsed.status]
    columns = parsed.columns
    kept = {"objects": len(columns.ids), "relationships": len(columns.predicates)}
    for name in TASK_LISTS[task]:
        dropped = {reason: parsed.dropped.get(reason, 0) for reason in _REASONS[name]}
        if sum(dropped.values()) > kept[name]:
            reason = max(dropped, key=dropped.__getitem__)
            return (
                f"{reason}: {DROPPED_WORDS.get(reason) or _first_shape(text, name, parsed, task)}"
            )
    return None


def lines_fault(text: str, task: Task) -> compact.Broken:
    """Why a completion in the compact notation has no lists."""
    found = compact.sections(find_answer(text).text, task)
    assert isinstance(found, compact.Broken)
    return found


def schema_fault(value: Any, task: Task) -> str:
    """Why JSON whose status is `schema_violation` is no graph."""
    if type(value) is not dict:
        return f"the JSON is {_kind(value)}, not an object with the lists objects and relationships"
    for name in TASK_LISTS[task]:
        if name not in value:
            return f"the JSON has no list {name}"
        if type(value[name]) is not list:
            return f"{name} is {_kind(value[name])}, not a list"
    raise AssertionError("not a schema violation")


def object_fault(value: Any) -> str:
    """Why a JSON value is a `malformed_object`."""
    if type(value) is not dict:
        return f"{_kind(value)}, not an object with id and bbox"
    if missing := _missing(value, ("id", "bbox")):
        return missing
    if type(value["id"]) is not str:
        return f"the id is {_kind(value['id'])}, not a text such as man.1"
    if read_object(value) is None:
        return f"the bbox is {_kind(value['bbox'])}, not four numbers"
    return "the id has no name"


def relationship_fault(value: Any) -> str:
    """Why a JSON value is a `malformed_relationship`."""
    keys = ("subject", "predicate", "object")
    if type(value) is not dict:
        return f"{_kind(value)}, not an object with subject, predicate and object"
    if missing := _missing(value, keys):
        return missing
    for key in keys:
        if type(value[key]) is not str:
            return f"the {key} is {_kind(value[key])}, not a text"
    return "the predicate is empty"


def entry_fault(name: str, value: Any, notation: NotationName) -> str:
    """Why an entry of the list of that name is malformed.

    Args:
        name: `objects` or `relationships`.
        value: As JSON has it; of the compact notation the line, where it says nothing else.
        notation: That of the answer.
    """
    if notation == "compact" and type(value) is str:
        return f"not a line such as: {compact.EXAMPLES[name]}"
    return _READERS[name][1](value)


def _first_shape(text: str, name: str, parsed: ParsedCompletion, task: Task) -> str:
    """What is wrong in the first malformed entry of a list."""
    answer = find_answer(text)
    values: Sequence[Any]
    if parsed.notation == "compact":
        values = compact.read_values(answer, task)[name == "relationships"]
    else:
        values = json_value(answer.text)[name]
    read, _ = _READERS[name]
    faults = (entry_fault(name, v, parsed.notation) for v in values if read(v) is None)
    return next(faults, "a name is empty")


_READERS: Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], str]]] = {
    "objects": (read_object, object_fault),
    "relationships": (read_relationship, relationship_fault),
}


def _missing(value: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The keys that an object lacks, and those that it has in their place."""
    missing = [key for key in keys if key not in value]
    others = sorted(key[:_SHOWN_LETTERS] for key in value if key not in keys)[:_SHOWN_KEYS]
    words = f"no {' and no '.join(missing)}" if missing else ""
    return f"{words}, but {', '.join(others)}" if words and others else words


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")
