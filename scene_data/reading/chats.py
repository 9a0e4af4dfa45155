"""Rows of chats: pictures in `images`, the answer as text, as TRL, ms-swift and EasyR1 have them.

The answer is a scene graph as JSON, with or without tags and thinking around it. It is the last
message of the assistant in `messages` or `conversations`, else the text of `completion`,
`solution`, `answer` or `response`. Boxes are pixels of the image, as ms-swift's `bbox_type` "real";
"norm1" and "norm1000" are shares and thousandths of the `width` and `height` of the row.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from scene_data.reading.refusal import shown
from scene_data.reading.rows import RowError, read_box, read_size, row_items
from scene_graph.parsing import find_answer

_CHATS = ("messages", "conversations")
_TEXTS = ("completion", "solution", "answer", "response")
COLUMNS = ("id", "bbox_type", *_CHATS, *_TEXTS)
"""What is read of a chat, beside its images and their size"""

_SCALES = {"norm1": 1, "norm1000": 1000}


def is_chat(columns: Collection[str]) -> bool:
    """Whether rows with such columns are chats."""
    return "objects" not in columns and any(name in columns for name in (*_CHATS, *_TEXTS))


def image_of(row: Mapping[str, Any]) -> Any:
    """The one image of a row: of `image`, or of the list `images`; None where it names none.

    Raises:
        RowError: It has several, or something else.
    """
    key = "image" if row.get("image") else "images"
    image = row.get(key) or None
    if isinstance(image, list):
        if len(image) > 1 or key == "image":
            raise RowError(f"{key} is a list of {len(image)}: one image a row", f"{key} is a list")
        image = image[0] or None
    found = image.get("bytes") or image.get("path") if isinstance(image, Mapping) else image
    is_path = isinstance(found, str) and found.isprintable()
    if image is not None and not is_path and not isinstance(found, bytes):
        raise RowError(f"{key} is {shown(image)}: a path is wanted", f"{key} is no path")
    return image


def graph_columns(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A chat as a row of `docs/data.md`, but for its image.

    Args:
        row: As the file has it.
        number: The row's, which is its image's id where it says none.

    Raises:
        RowError: There is no answer, or it is not a scene graph.
    """
    if (text := _answer(row)) is None:
        wanted = ", ".join((*_CHATS, *_TEXTS))
        raise RowError(f"no answer of an assistant in {wanted}", "no answer of an assistant")
    try:
        graph = json.loads(find_answer(text).text)
    except (ValueError, RecursionError) as error:
        raise RowError(
            f"the answer is not JSON ({error}): {shown(text)}", "the answer is not JSON"
        ) from error
    if not isinstance(graph, dict) or not {"objects", "relationships"} <= graph.keys():
        raise RowError(
            f"the answer is not a graph with objects and relationships: {shown(text)}",
            "the answer is not a graph",
        )
    names = ("image_id", "id")
    image_id = next((row[name] for name in names if row.get(name) is not None), number)
    sizes = {name: row.get(name) for name in ("width", "height")}
    objects = _in_pixels(row, row_items(graph, "objects"))
    return {**sizes, "image_id": image_id, **graph, "objects": objects}


def _answer(row: Mapping[str, Any]) -> str | None:
    chats = (row.get(name) for name in (*_CHATS, "completion"))
    for chat in chats:
        for message in reversed(chat if isinstance(chat, list) else []):
            role = message.get("role", message.get("from")) if isinstance(message, dict) else None
            if role in ("assistant", "gpt"):
                return _text(message.get("content", message.get("value")))
    return next((row[name] for name in _TEXTS if isinstance(row.get(name), str)), None)


def _text(content: Any) -> str:
    """The text of a message, which is a text or a list of parts."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _in_pixels(row: Mapping[str, Any], objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kind = row.get("bbox_type") or "real"
    if kind == "real":
        return objects
    scale = _SCALES.get(kind) if isinstance(kind, str) else None
    if (size := read_size(row)) is None or scale is None:
        raise RowError(
            f"bbox_type is {shown(kind)}: real (pixels), or norm1 or norm1000 with width and "
            "height in the row is wanted",
            "a bbox_type that cannot be used",
        )
    return [_scaled(item, size, scale) for item in objects]


def _scaled(item: dict[str, Any], size: tuple[int, int], unit: int) -> dict[str, Any]:
    if (box := read_box(item.get("bbox"))) is None:
        return item  # whose reader says what is wrong
    return {
        **item,
        "bbox": [round(v * side / unit, 2) for v, side in zip(box, size * 2, strict=True)],
    }
