"""The scene graph as a value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One object.

    Example: `SceneObject(id="man.1", bbox=(10, 20, 200, 400))`
    """

    id: str
    """`category.number`, unique in its graph."""
    bbox: tuple[float, float, float, float]
    """x1, y1, x2, y2; the space is said by whoever holds the graph."""

    @property
    def category(self) -> str:
        """The id without its number: `traffic light.2` is a `traffic light`."""
        head, dot, tail = self.id.rpartition(".")
        return head if dot and tail.isdigit() else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Relationship:
    """A triplet between two objects, by id."""

    subject: str
    predicate: str
    object: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneGraph:
    """Objects and the relationships between them.

    Example: `SceneGraph(objects=(SceneObject(id="man.1", bbox=(1, 2, 3, 4)),), relationships=())`
    """

    objects: tuple[SceneObject, ...]
    relationships: tuple[Relationship, ...]


def normalise_name(name: str) -> str:
    """Case folded, with `_`, `-` and runs of spaces as one space; for both sides."""
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())
