"""What can be used of a graph that a model or an annotator wrote; the rest is counted by reason.

A bad part is dropped alone, never the whole graph. Predictions and references pass the same rules.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeGuard

from scene_graph.graph import NORMAL_IDS, GraphColumns, Relationship, SceneObject

Task = Literal["sgg", "det", "cls"]
"""`sgg`: objects and relationships. `det`: objects only. `cls`: triplets of names, no boxes."""

TASK_LISTS: Mapping[Task, tuple[str, ...]] = {
    "sgg": ("objects", "relationships"),
    "det": ("objects",),
    "cls": ("relationships",),
}
"""What an answer consists of, and what of a reference is looked at."""

Box = Sequence[float]
"""[4] x1, y1, x2, y2"""

MAX_COORDINATE = 1e6
"""Larger numbers are no box in any space; products of them would overflow."""


class ObjectLike(Protocol):
    """What an object is made of; as `SceneObject`, but nothing is known of it yet."""

    @property
    def id(self) -> str:
        """`category.number` in any spelling."""

    @property
    def bbox(self) -> Box:
        """Any four numbers."""


class RelationshipLike(Protocol):
    """What a relationship is made of; as `Relationship`."""

    @property
    def subject(self) -> str:
        """The id of an object, perhaps."""

    @property
    def predicate(self) -> str:
        """In any spelling."""

    @property
    def object(self) -> str:
        """The id of an object, perhaps."""


def clean_columns(
    objects: Iterable[ObjectLike | None],
    relationships: Iterable[RelationshipLike | None],
    scale: tuple[float, float],
    task: Task = "sgg",
) -> tuple[GraphColumns, dict[str, int]]:
    """The usable parts of two lists, and the number of dropped ones by reason.

    Of objects with the same id and of equal triplets the first one stays. An object goes when its
    box is inverted, empty, not finite or beyond `MAX_COORDINATE`, and with it its relationships.

    Args:
        objects: None where an entry had the wrong shape; ignored for `cls`.
        relationships: The same; ignored for `det`.
        scale: Width and height of the image in the units of the boxes.
        task: For `cls` an end of a relationship need not be an object: its name is all there is.
    """
    columns = GraphColumns(scale=scale)
    index: dict[str, int] = {}
    dropped: dict[str, int] = {}
    if task != "cls":
        _clean_objects(objects, columns, index, dropped)
    if task != "det":
        _clean_relationships(relationships, columns, index, dropped, open_ended=task == "cls")
    return columns, dropped


def _clean_objects(
    objects: Iterable[ObjectLike | None],
    columns: GraphColumns,
    index: dict[str, int],
    dropped: dict[str, int],
) -> None:
    ids, categories, coordinates = columns.ids, columns.categories, columns.coordinates
    normal, low, high = NORMAL_IDS, -MAX_COORDINATE, MAX_COORDINATE
    for entry in objects:
        if entry is None:
            reason = "malformed_object"
        else:
            name, category = normal[entry.id]
            x1, y1, x2, y2 = box = entry.bbox
            is_box = low <= x1 < x2 <= high and low <= y1 < y2 <= high
            if is_box and category and name not in index:
                index[name] = len(ids)
                ids.append(name)
                categories.append(category)
                coordinates += box
                continue
            reason = _object_fault(category, box, is_box=is_box)
        dropped[reason] = dropped.get(reason, 0) + 1


def _object_fault(category: str, box: Box, *, is_box: bool) -> str:
    if not category:
        return "malformed_object"
    if is_box:
        return "duplicate_id"
    within = all(-MAX_COORDINATE <= c <= MAX_COORDINATE for c in box)  # false for NaN
    return "inverted_box" if within else "non_finite_box"


def _clean_relationships(
    relationships: Iterable[RelationshipLike | None],
    columns: GraphColumns,
    index: dict[str, int],
    dropped: dict[str, int],
    *,
    open_ended: bool,
) -> None:
    known: set[tuple[int | None, str, int | None]] = set()
    normal, place = NORMAL_IDS, index.get  # looked up once: this loop is most of parsing
    subjects, predicates, objects = columns.subjects, columns.predicates, columns.objects
    for entry in relationships:
        if entry is None:
            reason = "malformed_relationship"
        else:
            if open_ended:
                _add_name(entry.subject, columns, index)
                _add_name(entry.object, columns, index)
            subject, object_ = place(normal[entry.subject][0]), place(normal[entry.object][0])
            predicate = normal[entry.predicate][0]
            edge = subject, predicate, object_
            if not predicate:
                reason = "malformed_relationship"
            elif subject is None or object_ is None:
                reason = "dangling_relationship"
            elif edge in known:
                reason = "repeated_triplet"
            else:
                known.add(edge)
                subjects.append(subject)
                predicates.append(predicate)
                objects.append(object_)
                continue
        dropped[reason] = dropped.get(reason, 0) + 1


_NUMBERS = frozenset((int, float))
"""Types: true and false are not numbers."""


def is_four_numbers(value: Any) -> TypeGuard[list[float]]:
    """Whether a JSON value is a list of four numbers, as a box is."""
    return type(value) is list and len(value) == 4 and _NUMBERS.issuperset(map(type, value))


def read_object(value: Any) -> SceneObject | None:
    """A JSON value such as `{"id": "man.1", "bbox": [1, 2, 3, 4]}`; None of another shape."""
    if type(value) is not dict:
        return None
    name, box = value.get("id"), value.get("bbox")
    if type(name) is not str or not is_four_numbers(box):
        return None
    return SceneObject(id=name, bbox=(box[0], box[1], box[2], box[3]))


def read_relationship(value: Any) -> Relationship | None:
    """A JSON value such as `{"subject": "man.1", "predicate": "on", "object": "hat.1"}`."""
    if type(value) is not dict:
        return None
    subject, predicate, object_ = value.get("subject"), value.get("predicate"), value.get("object")
    if type(subject) is not str or type(predicate) is not str or type(object_) is not str:
        return None
    return Relationship(subject=subject, predicate=predicate, object=object_)


def _add_name(text: str, columns: GraphColumns, index: dict[str, int]) -> None:
    """Make an end of a `cls` relationship an object without a box; a nameless one dangles."""
    name, category = NORMAL_IDS[text]
    if category and name not in index:
        index[name] = len(columns.ids)
        columns.ids.append(name)
        columns.categories.append(category)
