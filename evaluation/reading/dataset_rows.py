"""A row of a dataset (`docs/data.md`) as a line of graphs, where it is not written as one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from evaluation.reading.lines import GraphLine, check_boxes
from scene_data.reading.chats import image_of
from scene_data.reading.images import check_image, image_bytes
from scene_data.reading.rows import RowError, image_id_text, read_size, row_items
from scene_graph.cleaning import Task


def decode_row(text: bytes, folder: Path, task: Task) -> GraphLine:
    """A row whose lists may be JSON text or columns, and whose size may be its picture's.

    Args:
        text: The JSON of one row.
        folder: Where paths of pictures count from.
        task: Objects of `cls` need no box.

    Raises:
        msgspec.DecodeError: It is no such row; the message says what is missing or wrong.
    """
    try:
        line = msgspec.convert(_line(msgspec.json.decode(text, type=dict), folder), GraphLine)
    except RowError as error:
        raise msgspec.ValidationError(str(error)) from error
    return check_boxes(line, task)


def _line(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    image = image_of(row)
    path = image.get("path") if isinstance(image, Mapping) else image
    items = {key: row_items(row, key) for key in ("objects", "relationships")}
    size = read_size(row) or _picture_size(folder, path)
    sides = dict(zip(("width", "height"), size, strict=True))
    return {"image_id": image_id_text(row.get("image_id")), "image": path, **sides, **items}


def _picture_size(folder: Path, path: str | None) -> tuple[int, int]:
    if not path:
        raise RowError("width and height are missing, and no image is named to read them from")
    return check_image(image_bytes(folder / path), None).size
