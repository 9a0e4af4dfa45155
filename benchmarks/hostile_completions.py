"""Completions that are expensive to score, each as large as the limit or far larger.

The other side of the service's limits: 256 KiB of text, 32 levels, 500 objects, 2000 relationships.
"""

import json
from collections.abc import Callable
from typing import Any

NUM_BYTES = 262_144
NUM_OBJECTS = 500
NUM_TRIPLETS = 2000

BOX = [100, 100, 300, 300]


def hostile_completions() -> dict[str, str]:
    """What it is, to its text."""
    return {name: make() for name, make in _MAKERS.items()}


def _graph(objects: list[Any], relationships: list[Any] | None = None) -> str:
    body = {"objects": objects, "relationships": relationships or []}
    return f"<answer>{json.dumps(body, ensure_ascii=False, separators=(',', ':'))}</answer>"


def _object(name: str, box: list[int] = BOX) -> dict[str, Any]:
    return {"id": name, "bbox": box}


def _filled(before: str, unit: str, after: str = "") -> str:
    """A text of just under the limit, most of it `unit` again and again."""
    room = NUM_BYTES - len(before.encode()) - len(after.encode())
    return before + unit * (room // len(unit.encode())) + after


def _boxes_within_the_limit() -> str:
    return _filled('<answer>{"relationships":[],"objects":[{}', ",{}", "]}</answer>")


def _equal_boxes() -> str:
    return _graph([_object(f"man.{i}") for i in range(NUM_OBJECTS)])


def _equal_boxes_with_triplets() -> str:
    objects = [_object(f"man.{i}") for i in range(NUM_OBJECTS)]
    ends = [
        (i % NUM_OBJECTS, (i + 1 + i // NUM_OBJECTS) % NUM_OBJECTS) for i in range(NUM_TRIPLETS)
    ]
    triplets = [{"subject": f"man.{s}", "predicate": "on", "object": f"man.{o}"} for s, o in ends]
    return _graph(objects, triplets)


def _triplets_of_one_pair() -> str:
    triplets = [
        {"subject": "man.1", "predicate": f"on {i}", "object": "man.2"} for i in range(NUM_TRIPLETS)
    ]
    return _graph([_object("man.1"), _object("man.2")], triplets)


def _repeated_triplets() -> str:
    triplet = {"subject": "man.1", "predicate": "on", "object": "man.2"}
    return _graph([_object("man.1"), _object("man.2")], [triplet] * NUM_TRIPLETS)


def _long_names() -> str:
    return _graph([_object(f"{'a_-' * 150}{i}.{i}") for i in range(NUM_OBJECTS)])


def _growing_names() -> str:
    """Letters that case folding turns into three."""
    return _graph([_object(f"{'ΐ' * 220}.{i}") for i in range(NUM_OBJECTS)])


def _repeated_keys() -> str:
    return _filled("<answer>{", '"objects":[],"relationships":[],', '"objects":[]}</answer>')


def _repeated_bbox() -> str:
    inner = _filled("", '"bbox":[1,2,3,4],')[: NUM_BYTES - 100].rpartition(",")[0]
    return f'<answer>{{"objects":[{{"id":"man.1",{inner}}}],"relationships":[]}}</answer>'


_MAKERS: dict[str, Callable[[], str]] = {
    "100,000 boxes": lambda: _graph([_object(f"man.{i}") for i in range(100_000)]),
    "87,000 empty objects in 256 KiB": _boxes_within_the_limit,
    "500 equal boxes": _equal_boxes,
    "500 equal boxes, 2000 triplets": _equal_boxes_with_triplets,
    "2000 triplets on one pair of equal boxes": _triplets_of_one_pair,
    "one triplet 2000 times": _repeated_triplets,
    "100,000 levels of arrays": lambda: '<answer>{"objects":' + "[" * 100_000,
    "256 KiB of levels of objects": lambda: _filled('<answer>{"objects":', '{"a":'),
    "5 MB of prose": lambda: "The man is near the horse. " * 190_000,
    "256 KiB of prose": lambda: _filled("", "The man is near the horse. "),
    "256 KiB of white space": lambda: _filled("<answer>", " \n", "</answer>"),
    "a number of 250,000 digits": lambda: _filled(
        '<answer>{"objects":[{"id":"man.1","bbox":[1,2,3,', "9", "]}]}</answer>"
    ),
    "a number of 250,000 digits after the point": lambda: _filled(
        '<answer>{"objects":[{"id":"man.1","bbox":[0,0,1,0.', "7", ']}],"relationships":[]}'
    ),
    "256 KiB of repeated keys": _repeated_keys,
    "256 KiB of one object's repeated bbox": _repeated_bbox,
    "an unclosed string": lambda: _filled('<answer>{"objects":[{"id":"', "a"),
    "256 KiB of quotes": lambda: _filled("<answer>{", '"'),
    "256 KiB of quotes after the word json": lambda: _filled("<answer>json{", '"'),
    "256 KiB of the word json": lambda: _filled("<answer>{", "json"),
    "256 KiB of backslashes": lambda: _filled('<answer>{"objects":[{"id":"', "\\"),
    "256 KiB of escapes": lambda: _filled('<answer>{"a":"', "\\u00e9", '"}</answer>'),
    "`<answer>` 29,000 times": lambda: _filled("", "<answer>{"),
    "`<think>` 37,000 times": lambda: _filled("", "<think>"),
    "256 KiB of code fences": lambda: _filled("<answer>", "```"),
    "names of 450 characters": _long_names,
    "names that case folding makes longer": _growing_names,
    "one name of 260,000 characters": lambda: _filled(
        '<answer>{"objects":[{"bbox":[1,2,3,4],"id":"', "a-", '.1"}],"relationships":[]}</answer>'
    ),
}
