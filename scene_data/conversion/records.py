"""Reading of one record of an annotation file: its id, size, boxes and names, or what is wrong."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scene_data.conversion.raw import Box, RawImage, Tally
from scene_data.reading.refusal import refusal, shown
from scene_data.reading.rows import RowError, image_id_text, read_box, read_size


def read_images(
    records: Iterable[tuple[str, Any]], read: Callable[[Any, str], RawImage], tally: Tally
) -> Iterator[RawImage]:
    """The images of records, each with its place for messages; broken ones are noted."""
    for place, record in records:
        try:
            yield read(record, place)
        except RowError as error:
            tally.note_broken(place, error)


def placed(items: Iterable[Any], where: str, key: str = "image_id") -> Iterator[tuple[str, Any]]:
    """Each record of a list with its place: `where` with its number, and the image's id."""
    for number, item in enumerate(items):
        name = item.get(key) if isinstance(item, dict) else None
        yield f"{where.format(number)} (image {name})", item


def member(item: Any, key: str, kind: type) -> Any:
    """A member of a JSON object.

    Raises:
        RowError: `item` is no object, or has no such member of that type.
    """
    value = item.get(key) if isinstance(item, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "missing" if value is None else shown(value)
        wanted = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}[kind]
        raise RowError(f"{key!r} is {found}, and {wanted} is wanted", f"no usable {key!r}")
    return value


def size_of(item: Any) -> tuple[int, int]:
    """Width and height of an image's record.

    Raises:
        RowError: They are missing, or not above 0.
    """
    if (size := read_size(item) if isinstance(item, Mapping) else None) is None:
        raise RowError("no width and height")
    return size


def image_id_of(item: Any, key: str = "image_id") -> str:
    """The id of an image's record, as text.

    Raises:
        RowError: It has none.
    """
    return image_id_text(item.get(key) if isinstance(item, Mapping) else None)


def box_of_sides(value: Any) -> Box | None:
    """The box of x, y, width and height; None of anything but four numbers."""
    if (sides := read_box(value)) is None:
        return None
    x, y, width, height = sides
    return x, y, x + width, y + height


def is_triplet(value: Any) -> bool:
    """Whether it is a list of three whole numbers."""
    return isinstance(value, list) and list(map(type, value)) == [int] * 3


def counted_name(
    names: Mapping[Any, str], number: Any, what: str, lists: str, file: Path, place: str
) -> str:
    """The name of a number that counts from 0.

    Raises:
        InvalidInputError: It has none: numbers are counted otherwise, and no name would be right.
    """
    if type(number) is int and number in names:
        return names[number]
    raise refusal(
        file,
        f"{what} is {shown(number)}, and {lists} has {len(names)} names",
        f"it counts from 0: 0 to {len(names) - 1} are wanted",
        row=place,
    )


def numbered_names(value: Any, file: Path, key: str) -> dict[Any, str]:
    """Names by number, from a list of names, of `{"id", "name"}`, or an object; no background.

    Example: `numbered_names([{"id": 1, "name": "man"}], file, "categories") == {1: "man"}`

    Raises:
        InvalidInputError: It is none of them.
    """
    names: dict[Any, str] = {}
    try:
        if isinstance(value, Mapping):
            names = {int(number): str(name) for number, name in value.items()}
        for number, item in enumerate(value if isinstance(value, list) else ()):
            key_of, name = (
                (number, item) if isinstance(item, str) else (item["id"], str(item["name"]))
            )
            if names.setdefault(key_of, name) != name:
                found = f"{key} has id {key_of} twice: {names[key_of]!r} and {name!r}"
                raise refusal(file, found, "each id is wanted once")
    except (KeyError, TypeError, ValueError):
        names = {}
    if names := {number: name for number, name in names.items() if name != "__background__"}:
        return names
    raise refusal(
        file,
        f"{key!r} is {'missing' if value is None else shown(value)}",
        'a list of names or of {"id", "name"} is wanted, or an object of names by number',
    )
