"""What is wrong in a completion, and where: for people, not for scores.

Parsing gives a status and counts what it drops (`scene_graph.parsing`). This walks over the same
text a second time and names each dropped part, and the place where a failed text breaks.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from scene_graph.cleaning import clean_columns, read_object, read_relationship
from scene_graph.faults import CUT_SHORT, DROPPED_WORDS, entry_fault, lines_fault, schema_fault
from scene_graph.graph import normalise_name
from scene_graph.json_limits import json_shape
from scene_graph.notations import compact
from scene_graph.notations.answer import NotationName
from scene_graph.notations.json_text import json_value, refuse_constant
from scene_graph.parsing import Limits, ParsedCompletion, find_answer
from services.schemas.rewards import Task

AROUND = 40
"""Characters that are shown on each side of the place where a text breaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedPart:
    """An entry of `objects` or `relationships` that was left out.

    Example: `objects[3]`, `{"id": "man.1", "bbox": [0, 0, 9, 9]}`, `duplicate_id`
    """

    where: Literal["objects", "relationships"]
    index: int
    """In that list as it was written, from 0"""
    reason: str
    """As counted in `Reward.dropped`"""
    why: str
    """The reason in words"""
    text: str
    """The part itself, as JSON"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in a completion."""

    line: int
    """From 1"""
    column: int
    """From 1"""
    before: str
    """Up to `AROUND` characters before it"""
    after: str
    """The same, from it on"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a text gives no graph."""

    message: str
    place: Place | None
    """Where that shows; None for what is too large"""


def answer_lists(
    text: str, task: Task = "sgg", notation: NotationName = "json"
) -> tuple[list[Any], list[Any]]:
    """Entries of `objects` and `relationships`, as written, of a completion whose status is `ok`.

    A list that its task does not look at may be anything: it comes back empty.
    """
    if notation == "compact":
        return compact.read_values(find_answer(text), task)
    value = json_value(find_answer(text).text, DECODER)
    lists = [value.get(name) for name in ("objects", "relationships")]
    objects, relationships = ([] if type(found) is not list else found for found in lists)
    return objects, relationships


def dropped_parts(
    objects: Sequence[Any],
    relationships: Sequence[Any],
    task: Task = "sgg",
    notation: NotationName = "json",
) -> list[DroppedPart]:
    """The parts that `scene_graph.cleaning.clean_columns` drops, in the order of the lists."""
    kept: set[str] = set()
    found = [] if task == "cls" else list(_dropped_objects(objects, kept, notation))
    if task == "cls":
        found += _dropped_relationships(relationships, None, notation)
    elif task == "sgg":
        ids = (v.get("id") for v in objects if type(v) is dict)
        written = {normalise_name(name) for name in ids if type(name) is str}
        found += _dropped_relationships(relationships, _Ids(kept, written - kept), notation)
    return found


def find_failure(text: str, parsed: ParsedCompletion, task: Task = "sgg") -> Failure | None:
    """Why a completion gives no graph; None where it gives one."""
    if parsed.status == "ok":
        return None
    if parsed.status == "too_large":
        return Failure(message=_what_is_too_large(text, parsed.notation), place=None)
    start, answer = answer_place(text)
    if parsed.notation == "compact":
        broken = lines_fault(text, task)
        message = CUT_SHORT["compact"] if parsed.truncated else broken.message
        return Failure(message=message, place=_place(text, start + broken.at))
    if parsed.status == "no_answer":
        message, at = "no JSON: the answer has neither { nor [", 0
    elif parsed.status == "schema_violation":
        message, at = schema_fault(json_value(answer), task), 0
    else:
        message, at = _json_mistake(answer)
    if parsed.truncated:
        message, at = f"the text stops inside the JSON ({message})", len(answer)
    return Failure(message=message, place=_place(text, start + at))


class _Ids(NamedTuple):
    """Ids of a completion's objects."""

    kept: set[str]
    dropped: set[str]


def _dropped_objects(
    values: Iterable[Any], kept: set[str], notation: NotationName
) -> Iterator[DroppedPart]:
    """Cleaned one at a time; only a duplicate needs to know the others. Adds to `kept`."""
    for index, value in enumerate(values):
        columns, dropped = clean_columns([read_object(value)], [], (1.0, 1.0), "det")
        reason = next(iter(dropped), "")
        if not reason and columns.ids[0] in kept:
            reason = "duplicate_id"
        if reason:
            why = _why("objects", reason, value, notation)
            yield _dropped("objects", index, reason, value, why)
        kept.update(columns.ids)


def _dropped_relationships(
    values: Iterable[Any], ids: _Ids | None, notation: NotationName
) -> Iterator[DroppedPart]:
    """The same for relationships; without `ids` their ends need not be objects."""
    seen: set[tuple[str, str, str]] = set()
    for index, value in enumerate(values):
        columns, dropped = clean_columns([], [read_relationship(value)], (1.0, 1.0), "cls")
        reason, why = next(iter(dropped), ""), ""
        if not reason:
            missing = [end for end in columns.ids if ids and end not in ids.kept]
            subject, object_ = columns.ids[columns.subjects[0]], columns.ids[columns.objects[0]]
            edge = (subject, columns.predicates[0], object_)
            if missing:
                reason, why = "dangling_relationship", _why_dangling(missing, ids)
            elif edge in seen:
                reason = "repeated_triplet"
            seen.add(edge)
        if reason:
            why = why or _why("relationships", reason, value, notation)
            yield _dropped("relationships", index, reason, value, why)


def _why_dangling(missing: list[str], ids: _Ids | None) -> str:
    dropped = ids.dropped if ids else ()
    return "; ".join(
        f"the object {end} was dropped" if end in dropped else f"no object has the id {end}"
        for end in missing
    )


def _dropped(
    where: Literal["objects", "relationships"], index: int, reason: str, value: Any, why: str
) -> DroppedPart:
    text = json.dumps(value, ensure_ascii=False)
    return DroppedPart(where=where, index=index, reason=reason, why=why, text=text)


def _why(where: str, reason: str, value: Any, notation: NotationName) -> str:
    if reason == "dangling_relationship" and notation == "compact":
        unknown = [end[1:] for end in (value["subject"], value["object"]) if end.startswith(".")]
        if unknown:  # `compact.read` names one so
            return "; ".join(f"no object has the label {label}" for label in unknown)
    return DROPPED_WORDS.get(reason) or entry_fault(where, value, notation)


def _place(text: str, at: int) -> Place:
    return Place(
        line=text.count("\n", 0, at) + 1,
        column=at - text.rfind("\n", 0, at),
        before=text[max(0, at - AROUND) : at],
        after=text[at : at + AROUND],
    )


def answer_place(text: str) -> tuple[int, str]:
    """Where the answer begins in the whole text, and the answer."""
    answer = find_answer(text)
    _, closing, after = text.rpartition("</think>")
    start = len(text) - len(after) if closing else 0
    tag = text.find("<answer>", start)
    start = start if tag < 0 else tag + len("<answer>")
    return text.find(answer.text, start), answer.text


def _what_is_too_large(text: str, notation: NotationName) -> str:
    limits = Limits()
    if len(text.encode("utf-8", "surrogatepass")) > limits.num_bytes:
        return f"over {limits.num_bytes // 1024} KiB of text"
    answer = find_answer(text).text
    shape = json_shape(answer.encode("utf-8", "surrogatepass"))
    if notation == "json" and shape.nesting > limits.nesting:
        return f"brackets are nested over {limits.nesting} deep"
    return f"over {limits.objects} objects or {limits.relationships} relationships"


def _json_mistake(answer: str) -> tuple[str, int]:
    """What the JSON decoder says, and the position it says it of."""
    try:
        DECODER.decode(answer)
    except json.JSONDecodeError as error:
        return error.msg.removesuffix(" starting at"), error.pos
    except ValueError as error:
        # Before the first one outside of strings all was JSON, so that strings are closed.
        places = (found.start(1) for found in _CONSTANT.finditer(answer) if found[1])
        return str(error), next(places)
    raise AssertionError("it is JSON")


_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)', re.DOTALL)


def _number(digits: str) -> float:
    """Whole numbers stay whole, to be shown as written; Python refuses to read very long ones."""
    return int(digits) if len(digits) <= 300 else float(digits)


DECODER = json.JSONDecoder(parse_int=_number, parse_constant=refuse_constant)
"""Reads an answer as parsing does."""
