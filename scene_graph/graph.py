"""The scene graph as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One object.

    Example:
        >>> sgg_rl.SceneObject(id="traffic light.2", bbox=(10, 20, 200, 400)).category
        'traffic light'
    """

    id: str
    """`category.number`, unique in its graph."""
    bbox: tuple[float, float, float, float]
    """x1, y1, x2, y2; the holder of the graph knows the space."""

    @property
    def category(self) -> str:
        """The id up to its first dot: `traffic light.2` is a `traffic light`."""
        return _category(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relationship:
    """A triplet between two objects, by id.

    Example:
        >>> sgg_rl.Relationship(subject="man.1", predicate="riding", object="horse.2").predicate
        'riding'
    """

    subject: str
    predicate: str
    object: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneGraph:
    """Objects and the relationships between them.

    Example:
        >>> man = sgg_rl.SceneObject(id="man.1", bbox=(10, 20, 200, 400))
        >>> horse = sgg_rl.SceneObject(id="horse.2", bbox=(0, 150, 300, 480))
        >>> riding = sgg_rl.Relationship(subject="man.1", predicate="riding", object="horse.2")
        >>> graph = sgg_rl.SceneGraph(objects=(man, horse), relationships=(riding,))
        >>> [item.category for item in graph.objects]
        ['man', 'horse']
    """

    objects: tuple[SceneObject, ...]
    relationships: tuple[Relationship, ...]

    def scaled(self, width: float, height: float) -> "SceneGraph":
        """The same with each x times `width` and each y times `height`."""
        objects = (
            SceneObject(id=item.id, bbox=(x1 * width, y1 * height, x2 * width, y2 * height))
            for item in self.objects
            for x1, y1, x2, y2 in (item.bbox,)
        )
        return SceneGraph(objects=tuple(objects), relationships=self.relationships)


@dataclass(slots=True, kw_only=True)
class GraphColumns:
    """A cleaned graph column by column, in the order it was written: what scoring works on.

    Not frozen: one is made for every completion, and a frozen dataclass takes four times as long.

    Example: a man on a horse is `ids=["man.1", "horse.1"], categories=["man", "horse"],
    coordinates=[0, 0, 5, 9, 0, 3, 9, 9], scale=(10, 10), subjects=[0], predicates=["on"],
    objects=[1]`.
    """

    ids: list[str] = field(default_factory=list)
    """[N] normalised, distinct"""
    categories: list[str] = field(default_factory=list)
    """[N] normalised, up to the first dot of the id"""
    coordinates: list[float] = field(default_factory=list)
    """[4N] x1, y1, x2, y2 of each object; empty for the task `cls`, whose names have no boxes"""
    scale: tuple[float, float] = (1.0, 1.0)
    """What 1.0 of the image's width and height is in `coordinates`"""
    subjects: list[int] = field(default_factory=list)
    """[E] index of each triplet's subject among the objects"""
    predicates: list[str] = field(default_factory=list)
    """[E] normalised"""
    objects: list[int] = field(default_factory=list)
    """[E]"""

    def to_graph(self) -> SceneGraph:
        """The same with boxes in fractions; for the task `cls` each is the whole image."""
        width, height = self.scale
        sides = (width, height, width, height)
        coordinates = self.coordinates or [0.0, 0.0, width, height] * len(self.ids)
        boxes = zip(*(iter(coordinates),) * 4, strict=True)
        return SceneGraph(
            objects=tuple(
                SceneObject(id=name, bbox=tuple(c / s for c, s in zip(box, sides, strict=True)))  # type: ignore[arg-type]
                for name, box in zip(self.ids, boxes, strict=True)
            ),
            relationships=tuple(
                Relationship(subject=self.ids[s], predicate=p, object=self.ids[o])
                for s, p, o in zip(self.subjects, self.predicates, self.objects, strict=True)
            ),
        )


def normalise_name(name: str) -> str:
    """Case folded, with `_`, `-` and runs of spaces as one space; for both sides.

    A lone surrogate, which JSON can name and no file can hold, becomes a question mark.
    """
    return NORMAL_IDS[name][0]


class _NormalIds(dict[str, tuple[str, str]]):
    """Remembers what it is asked for: the same few names come again and again."""

    def __missing__(self, text: str) -> tuple[str, str]:
        whole = text if text.isascii() else text.encode(errors="replace").decode()
        name = " ".join(whole.replace("_", " ").replace("-", " ").casefold().split())
        normal = name, _category(name)
        if len(text) <= _REMEMBERED_LENGTH:
            if len(self) >= _REMEMBERED_NAMES:
                self.clear()
            self[text] = normal
        return normal


_REMEMBERED_LENGTH, _REMEMBERED_NAMES = 64, 16_384

NORMAL_IDS: Mapping[str, tuple[str, str]] = _NormalIds()
"""Any id to it normalised, and the category in it: `Traffic_Light.2` has `traffic light`."""


def _category(name: str) -> str:
    return name.partition(".")[0].strip()
