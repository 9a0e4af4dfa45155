"""The columns of a TRL dataset as references to score against."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scene_graph.cleaning import TASK_LISTS
from services.errors import InvalidInputError, TooLargeError
from services.http.problems import invalid_input
from services.images import image_header
from services.schemas.rewards import Notation, ReferenceGraph, RewardGroup, Task

Columns = Mapping[str, Any]
"""Name to a list with an entry for each completion; TRL passes other things among them."""
ReferenceRow = dict[str, Any]
"""What one completion is held against, as the dataset has it."""

_FIELDS = {"objects": ("id", "bbox"), "relationships": ("subject", "predicate", "object")}
_SIZES = (("image_size",), ("width", "height"), ("image",), ("images",))


def check_columns(columns: Columns, task: Task) -> None:
    """See that a task's columns are there.

    Raises:
        InvalidInputError: They are not; the message says which ones are missing.
    """
    missing = [name for name in TASK_LISTS[task] if name not in columns]
    has_size = any(all(name in columns for name in names) for names in _SIZES)
    if task != "cls" and not has_size:
        missing.append("image_size (or width and height, or image)")
    if missing:
        present = [name for name, values in columns.items() if isinstance(values, list)]
        raise InvalidInputError(
            f"the dataset has no {' and no '.join(missing)}; "
            f"its columns are: {', '.join(present) or 'none'}"
        )


def read_row(columns: Columns, index: int, task: Task, box_space: str) -> ReferenceRow | None:
    """What one completion is held against; None where the dataset has no reference for it.

    Args:
        columns: With all that `check_columns` asks for.
        index: The completion's place.
        task: Says which columns matter.
        box_space: Where the dataset does not say it.
    """
    row: ReferenceRow = {name: columns[name][index] for name in TASK_LISTS[task]}
    if any(value is None for value in row.values()):
        return None
    spaces = columns.get("box_space")
    row["box_space"] = (spaces[index] if spaces else None) or box_space
    row["image_size"] = (1, 1) if task == "cls" else _size(columns, index)
    return row


def reward_group(
    row: ReferenceRow,
    texts: list[str],
    num_tokens: list[int] | None,
    *,
    require_thinking: bool,
    notation: Notation = "json",
) -> RewardGroup:
    """A row with its completions.

    Raises:
        InvalidInputError: The row is malformed; the error names the column.
    """
    lists = {name: _items(row[name], name) if name in row else [] for name in _FIELDS}
    try:
        return RewardGroup(
            group_id="trl",
            image_size=row["image_size"],
            box_space=row["box_space"],
            reference=ReferenceGraph.model_validate(lists),
            completions=texts,
            require_thinking=require_thinking,
            notation=notation,
            num_tokens=num_tokens,
        )
    except ValidationError as error:
        raise invalid_input(error.errors()) from error


def _items(value: Any, name: str) -> list[Any]:
    """A list of a reference, with only the fields that are looked at."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise InvalidInputError(f"{name} is not a list of objects, nor that as JSON")
    return [{field: item.get(field) for field in _FIELDS[name]} for item in value]


def _size(columns: Columns, index: int) -> Any:
    """Width and height of a completion's image, from the first column that says it."""
    if "image_size" in columns:
        return columns["image_size"][index]
    if "width" in columns and "height" in columns:
        return columns["width"][index], columns["height"][index]
    if "image" in columns:
        return _image_size(columns["image"][index])
    images = columns["images"][index]
    return _image_size(images[0]) if images else None


def _image_size(image: Any) -> Any:
    """The size of a PIL image, or of one as `datasets` stores it; None if none can be read."""
    if not isinstance(image, Mapping):
        return getattr(image, "size", None)
    try:
        return image_header(image.get("bytes") or Path(image["path"]).read_bytes()).size
    except (OSError, KeyError, TypeError, InvalidInputError, TooLargeError):
        return None
