"""What every source of annotations gives, and the account of what did not come through."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from scene_data.dataset import NUM_LISTED
from scene_data.refusal import refusal, shown
from scene_data.rows import RowError, image_id_text, read_size

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the image, or in shares of it"""


@dataclass(slots=True, kw_only=True)
class RawObject:
    """An object as annotated.

    Example: `RawObject(key=1058534, names=("shade",), bbox=(119, 338, 393, 530))`
    """

    key: Hashable
    """What relationships name it by; a text is an id that is kept while the name stays"""
    names: tuple[str, ...]
    """What annotators called it; the first that can be used counts"""
    bbox: Box


@dataclass(slots=True, kw_only=True)
class RawRelationship:
    """A triplet as annotated; the ends are keys of objects.

    Example: `RawRelationship(subject=1058534, names=("on",), object=5046)`
    """

    subject: Hashable
    names: tuple[str, ...]
    object: Hashable


@dataclass(slots=True, kw_only=True)
class RawImage:
    """One image of a source."""

    image_id: str
    image: Any
    """A file name inside the image folders, or what `scene_data.images.image_bytes` takes"""
    size: tuple[int, int] | None
    """Width and height that the annotations say"""
    split: str
    """As the source divides itself: `train`, `val`, `test`"""
    objects: list[RawObject]
    relationships: list[RawRelationship]
    in_shares: bool = False
    """Boxes are shares of the image's width and height, not pixels"""

    def in_pixels(self, size: tuple[int, int]) -> "RawImage":
        """The same with boxes in pixels, to two decimals where they were shares."""
        if not self.in_shares:
            return self
        scale = (*size, *size)
        objects = [replace(item, bbox=_scaled(item.bbox, scale)) for item in self.objects]
        return replace(self, objects=objects, in_shares=False)


@dataclass(slots=True)
class Tally:
    """What was left out, by reason."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Parts of annotations"""
    left_out: Counter[str] = field(default_factory=Counter)
    """Whole images that there was no use for"""
    reasons: Counter[str] = field(default_factory=Counter)
    """Broken images, by kind of fault"""
    broken: list[str] = field(default_factory=list)
    """The first `NUM_LISTED` of them"""

    @property
    def num_broken(self) -> int:
        """Images that could not be read."""
        return self.reasons.total()

    def note_broken(self, name: str, error: RowError) -> None:
        """Count a broken image, and list it while the list is short."""
        self.reasons[error.kind] += 1
        if len(self.broken) < NUM_LISTED:
            self.broken.append(f"{name}: {error}")


class Source(Protocol):
    """Annotations in some layout."""

    title: str
    """For the person who converts, such as `raw Visual Genome`."""
    name: str
    """The file, or what else was named"""

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images that can be read, in order; the others are noted."""


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


def _scaled(box: Box, scale: tuple[int, int, int, int]) -> Box:
    x1, y1, x2, y2 = (round(share * side, 2) for share, side in zip(box, scale, strict=True))
    return x1, y1, x2, y2
