"""Lines of JSONL for the evaluator: a man on a horse beside a tree."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MAN = {"id": "man.1", "bbox": [10, 10, 50, 90]}
HORSE = {"id": "horse.2", "bbox": [20, 40, 90, 95]}
TREE = {"id": "tree.3", "bbox": [60, 0, 100, 60]}
RIDING = {"subject": "man.1", "predicate": "riding", "object": "horse.2"}
NEAR = {"subject": "horse.2", "predicate": "near", "object": "tree.3"}


def line(image_id: str | float, **changes: Any) -> dict[str, Any]:
    """All three objects and both relations, but for what is changed."""
    plain = {
        "image_id": image_id,
        "width": 100,
        "height": 100,
        "objects": [MAN, HORSE, TREE],
        "relationships": [RIDING, NEAR],
    }
    return plain | changes


def write(file: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """One row a line; text goes in as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    file.write_text("".join(lines))
    return file
