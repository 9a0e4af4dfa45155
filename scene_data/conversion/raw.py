"""What every source of annotations gives, and the account of what did not come through."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from scene_data.dataset import NUM_LISTED
from scene_data.rows import RowError

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the image"""


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

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images that can be read, in order; the others are noted."""


def member(item: Any, key: str, kind: type) -> Any:
    """A member of a JSON object.

    Raises:
        RowError: `item` is no object, or has no such member of that type.
    """
    value = item.get(key) if isinstance(item, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RowError(f"{key!r} is missing or not a {kind.__name__}")
    return value


def size_of(item: Any) -> tuple[int, int]:
    """Width and height of an image's record.

    Raises:
        RowError: They are missing, or not above 0.
    """
    width, height = member(item, "width", int), member(item, "height", int)
    if min(width, height) < 1:
        raise RowError("width and height are not above 0")
    return width, height


def image_id_of(item: Any) -> str:
    """The id of an image's record, as text.

    Raises:
        RowError: It has none.
    """
    value = item.get("image_id") if isinstance(item, Mapping) else None
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise RowError("no image_id")
    return str(value)
