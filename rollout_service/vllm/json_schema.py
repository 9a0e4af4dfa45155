"""Which JSON Schemas requests may constrain sampling with.

A schema becomes an automaton over the vocabulary, in the process that samples for everybody. What
makes it large is looked at here, before any library sees it: one more `{1,9999}` in a pattern can
cost minutes. What is left may still be refused by the library, which an engine finds out itself.
"""

import json
import re
from collections.abc import Iterator
from math import prod
from typing import Any

from scene_graph.json_limits import json_shape
from scene_graph.notations.json_schema import scene_graph_schema
from scene_graph.notations.notation import ANSWER_GRAMMARS
from services.errors import InvalidInputError
from services.models.grammar_library import grammar_library
from services.schemas.common import Sampling

MAX_SCHEMA_BYTES = 32_768
MAX_SCHEMA_NESTING = 24
MAX_SCHEMA_COST = 20_000
"""Lengths and numbers of items, added up; within a pattern its length times all its counts; what
`_properties_cost` says. At the limit xgrammar takes about two seconds."""
MAX_PATTERN_CHARACTERS = 256
_COUNTS = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_ENDLESS = 1e100
_ANCHORS = ("$dynamicRef", "$recursiveRef")
_SIZES = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


def constraint_of(sampling: Sampling) -> dict[str, str]:
    """What to sample by, under vLLM's name for it; empty where all text is allowed.

    Raises:
        InvalidInputError: As `check_schema`; or a grammar is none of ours, which nothing bounds.
    """
    if sampling.grammar_library not in (None, library := grammar_library()):
        raise InvalidInputError(
            f"the trainer replays grammars with {sampling.grammar_library}, and this server has "
            f"{library}: install the same release for both"
        )
    if sampling.grammar is not None:
        if sampling.grammar not in ANSWER_GRAMMARS:
            raise InvalidInputError(
                "grammar: only those of answers are served, as this release writes them "
                "(scene_graph.notations.notation.answer_grammar); for other text use json_schema"
            )
        return {"grammar": sampling.grammar}
    if sampling.json_schema is None:
        return {}
    if sampling.json_schema == "scene_graph":
        return {"json": json.dumps(scene_graph_schema())}
    return {"json": check_schema(sampling.json_schema)}


def check_schema(schema: dict[str, Any]) -> str:
    """The schema as text, unless it is too large.

    Raises:
        InvalidInputError: It is too long, too deep, repeats too much or refers to itself.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
    except ValueError as error:
        raise InvalidInputError("json_schema holds NaN or an infinite number") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidInputError(f"json_schema has over {MAX_SCHEMA_BYTES} bytes: write a shorter")
    if json_shape(text.encode()).nesting > MAX_SCHEMA_NESTING:
        raise InvalidInputError(f"json_schema is nested deeper than {MAX_SCHEMA_NESTING}")
    _check_references(schema)
    cost = sum(_cost(node) for node in _objects(schema))
    if cost > MAX_SCHEMA_COST:
        raise InvalidInputError(
            f"json_schema costs {cost:g}, over the limit of {MAX_SCHEMA_COST}: lower its lengths, "
            "the counts in its patterns, and the number of properties that are not required"
        )
    return text


def _check_references(schema: dict[str, Any]) -> None:
    """Refuse recursion: through references alone it never consumes a token, and the engine hangs.

    References to definitions of the schema itself are left.
    """
    definitions = schema.get("$defs", {})
    if not isinstance(definitions, dict):
        raise InvalidInputError("json_schema: $defs is no object")
    uses = {name: _references(body, definitions) for name, body in definitions.items()}
    _references({key: value for key, value in schema.items() if key != "$defs"}, definitions)
    while uses:
        settled = [name for name, used in uses.items() if not used & uses.keys()]
        if not settled:
            raise InvalidInputError(f"json_schema refers to itself: {', '.join(sorted(uses))}")
        for name in settled:
            del uses[name]


def _references(value: Any, definitions: dict[str, Any]) -> set[str]:
    """Names of the definitions that a value refers to."""
    names = set()
    for node in _objects(value):
        if node.keys() & _ANCHORS:
            raise InvalidInputError(f"json_schema: {', '.join(_ANCHORS)} are not served")
        if "$ref" in node:
            name = str(node["$ref"]).removeprefix("#/$defs/")
            if name not in definitions:
                raise InvalidInputError('json_schema: a $ref is "#/$defs/<name>", defined there')
            names.add(name)
    return names


def _cost(node: dict[str, Any]) -> float:
    sizes = [_size(node.get(name)) for name in _SIZES]
    patterns = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
    keyed = node.get("patternProperties")
    patterns += list(keyed) if isinstance(keyed, dict) else []
    cost = sum(sizes) + sum(map(_pattern_cost, patterns))
    return cost + _properties_cost(node)


def _properties_cost(node: dict[str, Any]) -> float:
    """Any property that may be left out can be followed by any later one.

    With a least or largest number of properties, each state is there once for each count.
    """
    properties, required = node.get("properties"), node.get("required")
    if not isinstance(properties, dict):
        return 0
    names = required if isinstance(required, list) else []
    needed = {name for name in names if isinstance(name, str)}
    num_optional = len(properties.keys() - needed)
    bounds = (node.get("minProperties"), node.get("maxProperties"))
    return num_optional**2 / 8 + 10 * num_optional * max(map(_size, bounds))


def _size(value: Any) -> float:
    """A number without its sign; 0 where it is none. Some are too large for a float."""
    return min(abs(value), _ENDLESS) if isinstance(value, int | float) else 0


def _pattern_cost(pattern: str) -> int:
    """Counted repetitions can be nested, so they are multiplied, nested or not."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise InvalidInputError(
            f"a pattern in json_schema has over {MAX_PATTERN_CHARACTERS} characters"
        )
    counts = [max(int(low or 1), int(high or 1), 1) for low, high in _COUNTS.findall(pattern)]
    return len(pattern) * prod(counts)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All JSON objects in a value; its nesting is bounded."""
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        for child in children:
            yield from _objects(child)
