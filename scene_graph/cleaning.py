"""What can be used of a graph that a model or an annotator wrote; the rest is counted by reason.

A bad part costs itself and never the whole graph. Predictions and references pass the same rules.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from scene_graph.boxes import space_scale
from scene_graph.graph import NORMAL_IDS, GraphColumns, SceneGraph

Task = Literal["sgg", "det", "cls"]
"""`sgg`: objects and relationships. `det`: objects only. `cls`: triplets of names, no boxes."""

Box = Sequence[float]
"""[4] x1, y1, x2, y2"""

MAX_COORDINATE = 1e6
"""Larger numbers are no box in any space; products of them would overflow."""


def clean_graph(graph: SceneGraph, box_space: str) -> tuple[SceneGraph, Counter[str]]:
    """Normalise names, bring boxes to fractions, drop what cannot be right.

    Args:
        graph: Boxes in `box_space`.
        box_space: See `scene_graph.boxes`.

    Returns:
        The graph with boxes in fractions (coordinates outside 0..1 stay as they are), and the
        number of dropped parts by reason.
    """
    columns, dropped = clean_entries(
        [(item.id, item.bbox) for item in graph.objects],
        [(edge.subject, edge.predicate, edge.object) for edge in graph.relationships],
        space_scale(box_space),
    )
    return columns.to_graph(), Counter(dropped)


def clean_columns(
    objects: Iterable[Any],
    relationships: Iterable[Any],
    scale: tuple[float, float],
    task: Task = "sgg",
) -> tuple[GraphColumns, dict[str, int]]:
    """The usable parts of two lists of JSON values, and the number of dropped ones by reason.

    Of objects with the same id and of equal triplets the first one stays. An object goes when its
    box is inverted, empty, not finite or beyond `MAX_COORDINATE`, and with it its relationships.

    Args:
        objects: Values such as `{"id": "man.1", "bbox": [1, 2, 3, 4]}`; ignored for `cls`.
        relationships: Values such as `{"subject": "man.1", "predicate": "on", "object": "hat.1"}`;
            ignored for `det`.
        scale: Width and height of the image in the units of the boxes.
        task: For `cls` an end of a relationship need not be an object: its name is all there is.
    """
    return clean_entries(map(id_and_box, objects), map(three_names, relationships), scale, task)


def clean_entries(
    objects: Iterable[tuple[str, Box] | None],
    relationships: Iterable[tuple[str, str, str] | None],
    scale: tuple[float, float],
    task: Task = "sgg",
) -> tuple[GraphColumns, dict[str, int]]:
    """`clean_columns` of (id, box) and (subject, predicate, object); None has the wrong shape."""
    columns = GraphColumns(scale=scale)
    index: dict[str, int] = {}
    dropped: dict[str, int] = {}
    if task != "cls":
        _clean_objects(objects, columns, index, dropped)
    if task != "det":
        _clean_relationships(relationships, columns, index, dropped, open_ended=task == "cls")
    return columns, dropped


def _clean_objects(
    objects: Iterable[tuple[str, Box] | None],
    columns: GraphColumns,
    index: dict[str, int],
    dropped: dict[str, int],
) -> None:
    ids, categories, coordinates = columns.ids, columns.categories, columns.coordinates
    for entry in objects:
        name, category = NORMAL_IDS[entry[0]] if entry else ("", "")
        if not entry or not category:
            reason = "malformed_object"
        elif reason := _box_fault(*entry[1]):
            pass
        elif name in index:
            reason = "duplicate_id"
        else:
            index[name] = len(ids)
            ids.append(name)
            categories.append(category)
            coordinates += entry[1]
            continue
        dropped[reason] = dropped.get(reason, 0) + 1


def _box_fault(x1: float, y1: float, x2: float, y2: float) -> str:
    """Why four numbers are no box; empty when they are one."""
    low, high = -MAX_COORDINATE, MAX_COORDINATE
    if low <= x1 < x2 <= high and low <= y1 < y2 <= high:
        return ""
    if all(low <= c <= high for c in (x1, y1, x2, y2)):  # false for NaN
        return "inverted_box"
    return "non_finite_box"


def _clean_relationships(
    relationships: Iterable[tuple[str, str, str] | None],
    columns: GraphColumns,
    index: dict[str, int],
    dropped: dict[str, int],
    *,
    open_ended: bool,
) -> None:
    known: set[tuple[int, str, int]] = set()
    for entry in relationships:
        subject, predicate, object_ = entry or ("", "", "")
        if open_ended:
            _add_name(subject, columns, index)
            _add_name(object_, columns, index)
        predicate = NORMAL_IDS[predicate][0]
        edge = (
            index.get(NORMAL_IDS[subject][0], -1),
            predicate,
            index.get(NORMAL_IDS[object_][0], -1),
        )
        if not predicate:
            reason = "malformed_relationship"
        elif edge[0] < 0 or edge[2] < 0:
            reason = "dangling_relationship"
        elif edge in known:
            reason = "repeated_triplet"
        else:
            known.add(edge)
            columns.subjects.append(edge[0])
            columns.predicates.append(predicate)
            columns.objects.append(edge[2])
            continue
        dropped[reason] = dropped.get(reason, 0) + 1


_NUMBERS = ({float}, {int}, {float, int})  # true and false are not numbers


def id_and_box(value: Any) -> tuple[str, Box] | None:
    """One entry of `objects`; None when its shape is wrong."""
    if type(value) is not dict:
        return None
    name, box = value.get("id"), value.get("bbox")
    if type(name) is not str or not isinstance(box, list | tuple) or len(box) != 4:
        return None
    return (name, box) if set(map(type, box)) in _NUMBERS else None


def three_names(value: Any) -> tuple[str, str, str] | None:
    """One entry of `relationships`; None when its shape is wrong."""
    if type(value) is not dict:
        return None
    subject, predicate, object_ = value.get("subject"), value.get("predicate"), value.get("object")
    if type(subject) is not str or type(predicate) is not str or type(object_) is not str:
        return None
    return subject, predicate, object_


def _add_name(text: str, columns: GraphColumns, index: dict[str, int]) -> None:
    """Make an end of a `cls` relationship an object without a box; a nameless one dangles."""
    name, category = NORMAL_IDS[text]
    if category and name not in index:
        index[name] = len(columns.ids)
        columns.ids.append(name)
        columns.categories.append(category)
