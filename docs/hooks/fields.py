"""A JSON Schema as Markdown tables: name, type, default, range, meaning."""

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_CODE = re.compile(r"(`[^`]+`)")
_PAGE = re.compile(r"`?docs/([\w/-]+)\.md`?")
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "minItems": "length ≥ {}",
    "maxItems": "length ≤ {}",
    "pattern": "`{}`",
}
_REF = "#/components/schemas/"


def table(schema: Schema, prefix: str = "") -> str:
    """One row for each property.

    Args:
        schema: Of an object.
        prefix: Stands before each name in its anchor, such as `trainer.`; without it there is none.
    """
    rows = ["| name | type | default | range | meaning |", "|---|---|---|---|---|"]
    for name, field in schema["properties"].items():
        cells = [
            f'<a id="{prefix}{name}"></a>`{name}`' if prefix else f"`{name}`",
            kind(field),
            "required" if name in schema.get("required", ()) else _default(field.get("default")),
            ", ".join(_bounds(field)),
            prose(field.get("description", "")),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def kind(field: Schema) -> str:
    """What a value is, in words.

    Example: `"integer"`, `"list of string"`, ``"`a` or `b`"``, a link to the message that it is
    """
    if "$ref" in field:
        name = field["$ref"].removeprefix(_REF)
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    several = field.get("anyOf") or field.get("oneOf")
    if several:
        return " or ".join(kind(one) for one in several if one.get("type") != "null")
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])}: {kind(field['prefixItems'][0])}"
    if field.get("type") == "array":
        return f"list of {kind(field.get('items', {}))}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"table of {kind(values)}" if isinstance(values, dict) else "table"
    return "path" if field.get("format") == "path" else str(field.get("type", "any"))


def prose(text: str) -> str:
    """A docstring as Markdown of one line; pages of docs/ that it names become links."""
    parts = _CODE.split(_PAGE.sub(r"[\1](../\1.md)", " ".join(text.split())))
    return "".join(
        part if i % 2 else html.escape(part, quote=False).replace("|", "&#124;")
        for i, part in enumerate(parts)
    )


def _default(value: Any) -> str:
    """Empty for none, and for a message of defaults, which has a table of its own."""
    if value is None or isinstance(value, dict):
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _bounds(field: Schema) -> Iterator[str]:
    for part in (field, *field.get("anyOf", ())):
        for key, text in _BOUNDS.items():
            if key in part:
                yield text.format(part[key])
