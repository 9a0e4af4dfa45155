"""From a dataset row's `objects` and `relationships` to a `SceneGraph`."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from scene_data.reading.refusal import shown
from scene_graph.cleaning import MAX_COORDINATE, is_four_numbers
from scene_graph.graph import Relationship, SceneGraph, SceneObject


class RowError(ValueError):
    """A row that is not usable; the dataset counts and lists it.

    Args:
        message: What is wrong with this row.
        kind: The same without this row's names and numbers, to count by.
    """

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind or message.partition(":")[0]


def read_graph(
    row: Mapping[str, Any], *, keep_repeated: bool = False, annotated: bool = True
) -> tuple[SceneGraph, Counter[str]]:
    """The graph of a row, and what was dropped from it, by reason.

    Annotations have slips: an object with an empty box is dropped, and so is a relationship to an
    object that is not there; a repeated triplet counts once.

    Args:
        row: Its lists may be JSON strings.
        keep_repeated: Repeated triplets stay: some protocols of evaluation count each.
        annotated: Without a list, or without an object in it, the row is broken; else its graph is
            empty.

    Raises:
        RowError: A list is missing or malformed, an id comes twice, or no object is left.
    """
    dropped: Counter[str] = Counter()
    image_id_text(row.get("image_id"))
    read_size(row)
    objects: dict[str, SceneObject] = {}
    for item in row_items(row, "objects", needed=annotated):
        name = _text(item, "id")
        if name in objects:
            raise RowError(f"object id {name!r} comes twice", "an object id comes twice")
        bbox = _bbox(item)
        if bbox[0] < bbox[2] and bbox[1] < bbox[3]:
            objects[name] = SceneObject(id=name, bbox=bbox)
        else:
            dropped["empty_box"] += 1
    if annotated and not objects:
        raise RowError("no object with a box")
    triplets: list[Relationship] = []
    known: set[Relationship] = set()
    for item in row_items(row, "relationships", needed=annotated):
        triplet = Relationship(
            subject=_text(item, "subject"),
            predicate=_text(item, "predicate"),
            object=_text(item, "object"),
        )
        if triplet.subject not in objects or triplet.object not in objects:
            dropped["dangling_relationship"] += 1
        elif triplet in known and not keep_repeated:
            dropped["repeated_relationship"] += 1
        else:
            known.add(triplet)
            triplets.append(triplet)
    return SceneGraph(objects=tuple(objects.values()), relationships=tuple(triplets)), dropped


def image_id_text(value: Any) -> str:
    """An image's id as text; a number without its `.0`, which some writers add.

    Raises:
        RowError: There is none.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        value = int(value)
    if not isinstance(value, str | int | float) or isinstance(value, bool) or value == "":
        found = "no image_id" if value is None else f"image_id is {shown(value)}"
        raise RowError(f"{found}: a text or a number is wanted", "no image_id")
    return str(value).encode(errors="backslashreplace").decode()  # half a character in no file


def read_size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height that a row says, in pixels; None where it says neither.

    Raises:
        RowError: One is missing, or not a whole number above 0.
    """
    sides = [row.get(key) for key in ("width", "height")]
    if sides == [None, None]:
        return None
    whole = [_whole(side) for side in sides]
    if not all(side and 0 < side <= MAX_COORDINATE for side in whole):
        found = " x ".join(map(shown, sides))
        raise RowError(
            f"width x height is {found}: whole numbers above 0 are wanted, or neither of the two",
            "width and height are not above 0",
        )
    return int(whole[0] or 0), int(whole[1] or 0)


def read_thinking(row: Mapping[str, Any], column: str) -> str:
    """The thinking that leads to a row's graph, without its tags.

    Raises:
        RowError: It is missing, empty, or would end its own tag.
    """
    value = row.get(column)
    text = value.strip() if isinstance(value, str) else ""
    text = text.removeprefix("<think>").removesuffix("</think>").strip()
    if not text or "</think>" in text:
        raise RowError(f"column {column!r} has no text, or one with '</think>' inside")
    return text


def row_items(row: Mapping[str, Any], key: str, *, needed: bool = True) -> list[dict[str, Any]]:
    """The objects or relationships of a row, which may be JSON text; none where none are needed.

    Raises:
        RowError: They are not a list of JSON objects.
    """
    value = row.get(key)
    if value is None and not needed:
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{key} is not JSON: {error}") from error
    if isinstance(value, dict):
        value = _unpacked(value, key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        found = "missing" if value is None else shown(value)
        raise RowError(f"{key} is not a list of JSON objects: it is {found}")
    return value


def _unpacked(columns: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Items of an object of lists, as `datasets` stores `Sequence({...})`."""
    lengths = {name: len(v) if isinstance(v, list) else -1 for name, v in columns.items()}
    if len(set(lengths.values())) != 1 or -1 in lengths.values():
        raise RowError(
            f"{key} is not a list of JSON objects, nor an object of lists of one length: "
            f"{shown(lengths if -1 not in lengths.values() else columns)}"
        )
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, values, strict=True)) for values in rows]


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
        return int(value)
    is_whole = type(value) is int or (type(value) is float and value.is_integer())
    return int(value) if is_whole else None


def _text(item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{key!r} of {shown(item)} is not a name", f"{key!r} is not a name")
    return value


def _bbox(item: Mapping[str, Any]) -> tuple[float, float, float, float]:
    box = read_box(item.get("bbox"))
    if box is None:
        raise RowError(
            f"bbox of {item.get('id')!r} is not four numbers x1, y1, x2, y2: "
            f"it is {shown(item.get('bbox'))}",
            "a bbox is not 4 numbers",
        )
    return box


def read_box(value: Any) -> tuple[float, float, float, float] | None:
    """Four numbers, none of them infinite or beyond any image; None of anything else."""
    if not is_four_numbers(value):
        return None
    a, b, c, d = value
    high = MAX_COORDINATE  # false for NaN, and no overflow with huge integers
    if -high <= a <= high and -high <= b <= high and -high <= c <= high and -high <= d <= high:
        return a, b, c, d
    return None
