"""The notation of most models: one JSON object with the lists `objects` and `relationships`."""

import json
import re
from typing import Any, NoReturn

import msgspec

from scene_graph.cleaning import TASK_LISTS, Task, read_object, read_relationship
from scene_graph.graph import SceneGraph
from scene_graph.json_limits import json_shape
from scene_graph.notations.answer import (
    COORDINATE,
    MAX_OBJECTS,
    MAX_RELATIONSHIPS,
    Answer,
    Lists,
    pattern_rule,
)


def write(graph: SceneGraph, task: Task) -> str:
    """The text of a graph whose boxes are in the space to write them in."""
    lists = {
        "objects": [{"id": item.id, "bbox": list(item.bbox)} for item in graph.objects],
        "relationships": [
            {"subject": edge.subject, "predicate": edge.predicate, "object": edge.object}
            for edge in graph.relationships
        ],
    }
    payload = {name: lists[name] for name in TASK_LISTS[task]}
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


def grammar(task: Task) -> str:
    """As `Notation.grammar`; a relationship may name an object that is not there."""
    lists = {
        "objects": f'object ("," object){{0,{MAX_OBJECTS - 1}}}',
        "relationships": f'relationship ("," relationship){{0,{MAX_RELATIONSHIPS - 1}}}',
    }
    wanted = ' "," '.join(rf'"\"{name}\":[" ({lists[name]})? "]"' for name in TASK_LISTS[task])
    rules = [
        f'graph ::= "{{" {wanted} "}}"',
        pattern_rule("id", rf"{_NAME}\.[1-9][0-9]{{0,2}}"),
    ]
    if task != "cls":
        box = ' "," '.join(["number"] * 4)
        rules.append(rf'object ::= "{{\"id\":\"" id "\",\"bbox\":[" {box} "]}}"')
        rules.append(pattern_rule("number", COORDINATE))
    if task != "det":
        ends = r'id "\",\"predicate\":\"" name "\",\"object\":\"" id'
        rules.append(rf'relationship ::= "{{\"subject\":\"" {ends} "\"}}"')
        rules.append(pattern_rule("name", _NAME))
    return "\n".join(rules)


_NAME = "[A-Za-z][A-Za-z0-9 '-]{0,39}"


def read(answer: Answer, task: Task) -> Lists:
    """What any text says, or why it says nothing."""
    return read_well_formed(answer.text, task) or read_any(answer, task)


def json_value(text: str, decoder: json.JSONDecoder | None = None) -> Any:
    """The JSON in the text of an answer.

    Where it is none as it stands, code fences, the word json and tags of the answer are taken out
    of it, as R1-SGG's published code does (arXiv 2504.13617); but not out of strings, so that names
    stay whole.

    Raises:
        ValueError: It is no JSON in either way; says where it breaks as it stands.
        RecursionError: It is nested deeper than the decoder can follow.
    """
    decoder = decoder or _DECODER
    try:
        return decoder.decode(text)
    except ValueError as error:
        if not any(mark in text for mark in _MARKS):
            raise
        try:
            return decoder.decode(_NO_JSON.sub(r"\1 ", text))
        except ValueError:
            raise error from None


_MARKS = ("```", "json", "<answer>", "</answer>")
_NO_JSON = re.compile(rf'("(?:[^"\\]++|\\.)*+"?)|{"|".join(_MARKS)}', re.DOTALL)
"""What is no part of JSON; or a string, closed or not, which stays."""


class _Object(msgspec.Struct, gc=False):
    id: str
    bbox: tuple[float, float, float, float]


class _Relationship(msgspec.Struct, gc=False):
    subject: str
    predicate: str
    object: str


class _Objects(msgspec.Struct, gc=False):
    objects: list[_Object]


class _Relationships(msgspec.Struct, gc=False):
    relationships: list[_Relationship]


class _Graph(msgspec.Struct, gc=False):
    objects: list[_Object]
    relationships: list[_Relationship]


_DECODERS: dict[Task, msgspec.json.Decoder[Any]] = {
    "sgg": msgspec.json.Decoder(_Graph),
    "det": msgspec.json.Decoder(_Objects),
    "cls": msgspec.json.Decoder(_Relationships),
}


def read_well_formed(text: str, task: Task) -> Lists | None:
    """What honest text says, faster than `read_any`; None where any part has the wrong shape."""
    try:
        found = _DECODERS[task].decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None
    return Lists("ok", getattr(found, "objects", ()), getattr(found, "relationships", ()))


def read_any(answer: Answer, task: Task) -> Lists:
    """What any text says, or why it says nothing."""
    if "{" not in answer.text and "[" not in answer.text:
        return Lists("no_answer")
    try:
        value = json_value(answer.text)
    except ValueError:
        truncated = not answer.finished and json_shape(utf8(answer.text)).unclosed > 0
        return Lists("invalid_json", truncated=truncated)
    except RecursionError:  # the decoder stops at Python's own limit, far above ours
        return Lists("too_large")
    if type(value) is not dict:
        return Lists("schema_violation")
    objects = [] if task == "cls" else value.get("objects")
    relationships = [] if task == "det" else value.get("relationships")
    if type(objects) is not list or type(relationships) is not list:
        return Lists("schema_violation")
    return Lists("ok", list(map(read_object, objects)), list(map(read_relationship, relationships)))


def refuse_constant(name: str) -> NoReturn:
    """For a decoder: NaN and the infinities, which Python would read, are not JSON."""
    raise ValueError(f"{name} is not JSON")


# Integers as floats: Python refuses to read an int of more than 4300 digits.
_DECODER = json.JSONDecoder(parse_int=float, parse_constant=refuse_constant)


def utf8(text: str) -> bytes:
    """A model's text as bytes, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")
