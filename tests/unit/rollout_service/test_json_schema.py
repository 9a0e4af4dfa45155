"""Schemas that would cost the engine too much are refused before any library reads them."""

import json
from typing import Any

import pytest

from rollout_service.vllm.json_schema import (
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_COST,
    check_schema,
    constraint_of,
)
from scene_graph.schema import scene_graph_schema
from services.errors import InvalidInputError
from services.schemas.common import Sampling


def test_a_schema_of_one_s_own() -> None:
    tree = {
        "$defs": {"leaf": {"type": "string", "maxLength": 20}},
        "type": "array",
        "items": {"$ref": "#/$defs/leaf"},
        "maxItems": 3,
    }
    assert json.loads(check_schema(tree)) == tree
    assert constraint_of(Sampling(json_schema=tree)) == check_schema(tree)


def test_the_named_schema_is_within_the_limits() -> None:
    text = constraint_of(Sampling(json_schema="scene_graph"))
    assert text == check_schema(scene_graph_schema())
    assert constraint_of(Sampling()) is None


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"enum": ["x" * MAX_SCHEMA_BYTES]}, "bytes"),
        (nested(40), "nested"),
        ({"maxLength": MAX_SCHEMA_COST + 1}, "over the limit"),
        ({"maxLength": 1e9}, "over the limit"),
        ({"minLength": -(10**400)}, "over the limit"),
        ({"properties": {"a": {}}, "maxProperties": 10**400}, "over the limit"),
        (
            {"maxLength": MAX_SCHEMA_COST, "items": {"minLength": -MAX_SCHEMA_COST}},
            "over the limit",
        ),
        ({"anyOf": [{"maxItems": MAX_SCHEMA_COST // 2 + 1}] * 2}, "over the limit"),
        ({"pattern": "(a{1,10000}){1,10000}"}, "over the limit"),
        ({"pattern": "((a{100}){100}){100}"}, "over the limit"),
        ({"patternProperties": {"a{99999}": {}}}, "over the limit"),
        # xgrammar needs 240 s for 1600 of them, and 2 s for 60 of which 30 are counted.
        ({"properties": {f"a{i}": {} for i in range(401)}}, "over the limit"),
        ({"properties": {f"a{i}": {} for i in range(60)}, "minProperties": 40}, "over the limit"),
        ({"properties": {str(i): {} for i in range(500)}, "required": [3, "0"]}, "over the limit"),
        ({"enum": [float("nan")]}, "NaN"),
        ({"pattern": "a" * 257}, "characters"),
        ({"$ref": "#"}, "defined there"),
        ({"$ref": "file:///etc/passwd"}, "defined there"),
        ({"$ref": "http://127.0.0.1/schema"}, "defined there"),
        ({"$ref": {"a": 1}}, "defined there"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "itself: a"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"items": {"$ref": "#/$defs/a"}}}}, "a, b"),
        ({"$defs": []}, "no object"),
        ({"properties": {"x": {"$dynamicRef": "#y"}}}, "not served"),
    ],
)
def test_what_would_cost_too_much(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_schema(schema)


def test_properties_that_are_required_cost_little() -> None:
    names = [f"a{i}" for i in range(1000)]
    check_schema({"properties": {name: {} for name in names}, "required": names})
    check_schema({"properties": {f"a{i}": {} for i in range(400)}})
