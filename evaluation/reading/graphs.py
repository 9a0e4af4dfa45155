"""Graphs as they were written, made `ImageGraph`s: nothing is mended, all that is wrong is counted.

| what is wrong | what becomes of it |
|---|---|
| no box, which only the task `cls` lets pass | is not a number, and not looked at |
| a box outside of its image | stays as it is |
| a coordinate beyond a million | its object is left out, as rewards and datasets leave it out |
| an empty or inverted box | stays: an object that hits nothing |
| an object id that comes twice | both objects stay; relationships mean the first |
| a relationship to an object that is not there | is left out: it cannot be placed |
"""

import math
from collections.abc import Sequence
from typing import Any

from evaluation.reading.lines import LineObject, LineRelationship
from evaluation.reading.problems import Place
from scene_graph.cleaning import MAX_COORDINATE
from scene_graph.graph import NORMAL_IDS
from scene_graph.metrics.table import ImageGraph
from scene_graph.parsing import ParsedCompletion

_NO_BOX = (math.nan,) * 4


def written_graph(
    objects: Sequence[LineObject],
    relationships: Sequence[LineRelationship],
    size: tuple[int, int],
    place: Place,
) -> ImageGraph:
    """The graph of a line.

    Args:
        objects: Boxes in pixels.
        relationships: By the objects' ids.
        size: Width and height of the image.
        place: Where the line is, for what is wrong in it.
    """
    objects = _in_range(objects, place)
    graph = ImageGraph(
        names=[NORMAL_IDS[item.id][1] for item in objects],
        boxes=[coordinate for item in objects for coordinate in item.bbox or _NO_BOX],
        scores=_scores(objects),
        size=size,
    )
    _check_boxes(objects, size, place)
    placed = _connect(graph, relationships, _indices(objects, place), place)
    graph.relation_scores = _scores(placed)
    if graph.scores or graph.relation_scores:
        _sort(graph)
    return graph


def parsed_graph(parsed: ParsedCompletion, size: tuple[int, int], place: Place) -> ImageGraph:
    """The graph of an answer, in pixels; parts that the parser dropped are counted."""
    columns = parsed.columns
    for reason, number in parsed.dropped.items():
        place.add(reason, f"{number} in the answer")
    x, y = (pixels / unit for pixels, unit in zip(size, columns.scale, strict=True))
    sides = (x, y, x, y) * len(columns.categories)
    coordinates = columns.coordinates or _NO_BOX * len(columns.categories)
    return ImageGraph(
        names=columns.categories,
        boxes=[c * side for c, side in zip(coordinates, sides, strict=True)],
        subjects=columns.subjects,
        predicates=columns.predicates,
        objects=columns.objects,
        size=size,
    )


def _sort(graph: ImageGraph) -> None:
    """Relations by falling score, as a detector writes them: `sgb` takes rows in their order."""
    ends = zip(graph.subjects, graph.objects, strict=True)
    products = [graph.scores[s] * graph.scores[o] if graph.scores else 1.0 for s, o in ends]
    if graph.relation_scores:
        products = [a * b for a, b in zip(products, graph.relation_scores, strict=True)]
    order = sorted(range(len(products)), key=lambda row: -products[row])
    graph.subjects = [graph.subjects[row] for row in order]
    graph.predicates = [graph.predicates[row] for row in order]
    graph.objects = [graph.objects[row] for row in order]
    if graph.relation_scores:
        graph.relation_scores = [graph.relation_scores[row] for row in order]


def _scores(items: Sequence[Any]) -> list[float]:
    """Empty where none has one; else 1 for those without."""
    if all(item.score is None for item in items):
        return []
    return [1.0 if item.score is None else item.score for item in items]


def _in_range(objects: Sequence[LineObject], place: Place) -> list[LineObject]:
    """Those whose coordinates are no larger than any image's."""
    kept = []
    for item in objects:
        if item.bbox is None or max(map(abs, item.bbox)) <= MAX_COORDINATE:
            kept.append(item)
        else:
            detail = f"{item.id!r} is left out: its box is {_words(item.bbox)}"
            place.add("non_finite_box", detail)
    return kept


def _check_boxes(objects: Sequence[LineObject], size: tuple[int, int], place: Place) -> None:
    width, height = size
    for item in objects:
        if item.bbox is None:
            continue
        x1, y1, x2, y2 = item.bbox
        if not (x1 < x2 and y1 < y2):
            place.add("empty_box", f"{item.id!r} has the box {_words(item.bbox)}")
        elif x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            detail = f"{item.id!r} has the box {_words(item.bbox)}, the image is {width}x{height}"
            place.add("box_outside", detail)


def _words(box: Sequence[float]) -> str:
    return f"[{', '.join(f'{c:.6g}' for c in box)}]"


def _indices(objects: Sequence[LineObject], place: Place) -> dict[str, int]:
    index: dict[str, int] = {}
    for number, item in enumerate(objects):
        if index.setdefault(item.id, number) != number:
            place.add("duplicate_object", f"object id {item.id!r} comes twice")
    return index


def _connect(
    graph: ImageGraph,
    relationships: Sequence[LineRelationship],
    index: dict[str, int],
    place: Place,
) -> list[LineRelationship]:
    """Add the relationships between objects that are there; returns those."""
    placed = []
    loose: dict[str, int] = {}
    for edge in relationships:
        subject, object_ = index.get(edge.subject), index.get(edge.object)
        if subject is None or object_ is None:
            # "Man.1" may mean "man.1": looked for only where the exact id is not there.
            loose = loose or {NORMAL_IDS[name][0]: i for name, i in reversed(index.items())}
            subject = loose.get(NORMAL_IDS[edge.subject][0]) if subject is None else subject
            object_ = loose.get(NORMAL_IDS[edge.object][0]) if object_ is None else object_
        if subject is None or object_ is None:
            missing = edge.subject if subject is None else edge.object
            detail = f"{edge.predicate!r} refers to {missing!r}, which is no object here"
            place.add("dangling_relationship", detail)
            continue
        graph.subjects.append(subject)
        graph.predicates.append(NORMAL_IDS[edge.predicate][0])
        graph.objects.append(object_)
        placed.append(edge)
    return placed
