"""The JSON Schema of a scene graph, for requests that ask for JSON alone.

It allows what `scene_graph.parsing` reads as a graph without a malformed part. Everything is
bounded, so that a sampler comes to an end.
"""

from typing import Any

from scene_graph.notations.answer import MAX_OBJECTS, MAX_RELATIONSHIPS

_LABEL = "[A-Za-z][A-Za-z0-9 '-]{0,39}"
_ID = {"type": "string", "pattern": rf"^{_LABEL}\.[1-9][0-9]{{0,2}}$"}
_PREDICATE = {"type": "string", "pattern": f"^{_LABEL}$"}
# Thousandths and pixels are whole numbers; `relative_1` has fractions.
_COORDINATE = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": 99_999},
        {"type": "number", "minimum": 0, "maximum": 1},
    ]
}
_BOX = {"type": "array", "items": _COORDINATE, "minItems": 4, "maxItems": 4}


def scene_graph_schema() -> dict[str, Any]:
    """Schema of `{"objects": [...], "relationships": [...]}`, keys in this order.

    A box may still be inverted, and a relationship may name an object that is not there: no schema
    can say that.
    """
    relationship = {"subject": _ID, "predicate": _PREDICATE, "object": _ID}
    return _record(
        {
            "objects": _list(_record({"id": _ID, "bbox": _BOX}), MAX_OBJECTS),
            "relationships": _list(_record(relationship), MAX_RELATIONSHIPS),
        }
    )


def _record(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: dict[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": most}
