"""What every source of annotations gives, and the account of what did not come through."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from scene_data.dataset import BrokenRows

T = TypeVar("T")
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
    """A file name inside the image folders, or what `reading.images.image_bytes` takes"""
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


@dataclass(slots=True, kw_only=True)
class Tally(BrokenRows):
    """What was left out, by reason; broken images among it."""

    left_out: Counter[str] = field(default_factory=Counter)
    """Whole images that there was no use for"""

    def kept(self, items: Iterable[T | None], reason: str) -> list[T]:
        """The items that could be read; the others are counted."""
        found = list(items)
        if num := found.count(None):
            self.dropped[reason] += num
        return [item for item in found if item is not None]


class FileSource:
    """What all sources have that read one file, with those beside it."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path


class Source(Protocol):
    """Annotations in some layout."""

    title: str
    """For the person who converts, such as `raw Visual Genome`."""
    name: str
    """The file, or what else was named"""

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images that can be read, in order; the others are noted."""


def _scaled(box: Box, scale: tuple[int, int, int, int]) -> Box:
    x1, y1, x2, y2 = (round(share * side, 2) for share, side in zip(box, scale, strict=True))
    return x1, y1, x2, y2
