"""One graph of several answers about an image: what at least half of them say.

For example, of three answers two have a man on a horse and one a man beside it: the graph has man
and horse with the score 1, and "man on horse" with 0.67.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from evaluation.reading.lines import GraphLine, LineObject, LineRelationship
from scene_graph.matching import MIN_IOU
from scene_graph.metrics.hits import iou

Box = tuple[float, float, float, float]


@dataclass(slots=True)
class _Thing:
    """What several answers show, each once."""

    category: str
    boxes: list[Box] = field(default_factory=list)
    """One an answer; empty for the task `cls`"""
    num_answers: int = 0

    @property
    def box(self) -> Box | None:
        """The median of each side."""
        if not self.boxes:
            return None
        x1, y1, x2, y2 = (float(median(side)) for side in zip(*self.boxes, strict=True))
        return x1, y1, x2, y2


def agreed(
    lines: Sequence[GraphLine],
) -> tuple[list[LineObject], list[LineRelationship]]:
    """The objects and relationships that half of the answers or more have; scores are shares.

    Answers are taken in their order. An object stands for one of the same name that earlier ones
    have found where it overlaps its box, best overlap first, each once; without boxes the n-th of a
    name is the n-th. Else it is a new one. Boxes are medians.

    Args:
        lines: Of answers with a graph, at least one, boxes in one space.
    """
    things: list[_Thing] = []
    triplets: dict[tuple[int, str, int], int] = {}
    for line in lines:
        found = _places(line.objects, things)
        edges = {(found[r.subject], r.predicate, found[r.object]): None for r in line.relationships}
        for edge in edges:
            triplets[edge] = triplets.get(edge, 0) + 1
    ids = _ids(things, len(lines))
    objects = [
        LineObject(name, things[place].box, things[place].num_answers / len(lines))
        for place, name in ids.items()
    ]
    relationships = [
        LineRelationship(ids[subject], predicate, ids[thing], count / len(lines))
        for (subject, predicate, thing), count in triplets.items()
        if 2 * count >= len(lines)  # then its ends are in as many answers
    ]
    return objects, relationships


def _places(objects: Sequence[LineObject], things: list[_Thing]) -> Mapping[str, int]:
    """The thing that each object of one answer is, by id; `things` grow."""
    overlaps = [_overlaps(item, things) for item in objects]
    by_overlap = sorted(
        (-overlap, place, number) for number, row in enumerate(overlaps) for place, overlap in row
    )
    taken: dict[int, int] = {}
    for _, place, number in by_overlap:
        if number not in taken and place not in taken.values():
            taken[number] = place
    found: dict[str, int] = {}
    for number, item in enumerate(objects):
        place = taken.get(number, len(things))
        if place == len(things):
            things.append(_Thing(_category(item)))
        thing = things[place]
        thing.num_answers += 1
        if item.bbox is not None:
            thing.boxes.append(item.bbox)
        found[item.id] = place
    return found


def _overlaps(item: LineObject, things: Sequence[_Thing]) -> list[tuple[int, float]]:
    """Things of its name with IoU >= 0.5, all of them where there are no boxes."""
    same = [i for i, thing in enumerate(things) if thing.category == _category(item)]
    if item.bbox is None:
        return [(place, 1.0) for place in same]
    if not same:
        return []
    boxes = np.array([things[i].box for i in same], dtype=np.float64)
    values = iou(np.tile(np.array(item.bbox, dtype=np.float64), (len(same), 1)), boxes)
    return [(p, v) for p, v in zip(same, values.tolist(), strict=True) if v >= MIN_IOU]


def _ids(things: Sequence[_Thing], num_answers: int) -> dict[int, str]:
    """Ids of what at least half of the answers have, numbered by name."""
    numbers: dict[str, int] = {}
    ids: dict[int, str] = {}
    for place, thing in enumerate(things):
        if 2 * thing.num_answers >= num_answers:
            number = numbers[thing.category] = numbers.get(thing.category, 0) + 1
            ids[place] = f"{thing.category}.{number}"
    return ids


def _category(item: LineObject) -> str:
    return item.id.partition(".")[0].strip()
