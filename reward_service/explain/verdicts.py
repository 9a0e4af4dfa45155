"""What became of each object and each triplet of a completion that is held against a reference.

Read off the same comparison (`scene_graph.matching.compare`) that the terms are made from.
"""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from scene_graph.graph import GraphColumns
from scene_graph.matching import compare
from scene_graph.similarity import Indices, Similarity
from services.schemas.rewards import Task

MIN_NEAR_IOU = 0.1
"""From here on a box is of the object that it is matched with, if badly placed; under it, of
another thing. So error analyses of detectors tell localisation from background: Hoiem et al.,
Diagnosing Error in Object Detectors (ECCV 2012), and TIDE (arXiv 2008.08115, section 2.2)."""
ObjectVerdict = Literal["hit", "box_off", "wrong_name", "junk"]
"""By name and by IoU with the matched reference object: `hit` has the name and IoU >= 0.5,
`box_off` the name and IoU from 0.1 on, `wrong_name` only IoU >= 0.5; `junk` is all else."""
TripletVerdict = Literal[
    "hit",
    "alike",
    "surplus",
    "wrong_predicate",
    "wrong_name",
    "box_off",
    "unannotated",
    "not_in_reference",
]
"""The first of these that is true:

- `hit`: equal names and boxes of IoU >= 0.5, one-to-one with a reference triplet;
- `alike`: the same with names that the rubric's similarity finds alike;
- `surplus`: it would be a hit, but other triplets have got the reference's;
- `wrong_predicate`, `wrong_name` (of an end), `box_off`: its ends are matched with the ends of a
  reference triplet at IoU >= 0.1, and that is what is wrong with it;
- `unannotated`: an end overlaps no reference object, so that nobody knows;
- `not_in_reference`: both ends do, and the reference has no such triplet between them.
"""
Names = tuple[str, str, str]
"""Subject's id, predicate, object's id"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectLine:
    """A predicted object."""

    id: str
    bbox: list[float]
    """In the units that it was written in"""
    verdict: ObjectVerdict | None = None
    """None without a reference"""
    reference: str | None = None
    """Id of the reference object that it is matched with"""
    iou: float | None = None
    """With it, 0..1"""
    similarity: float | None = None
    """The similarity of their names, 0..1"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissedObject:
    """A reference object without a hit."""

    id: str
    bbox: list[float]
    """Pixels of the image"""
    matched: str | None
    """Id of the predicted object that is matched with it all the same"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TripletLine:
    """A predicted triplet."""

    triplet: Names
    verdict: TripletVerdict | None = None
    """None without a reference"""
    reference: Names | None = None
    """The reference triplet of a `hit` or an `alike`"""
    wanted: list[str] = field(default_factory=list)
    """Predicates that the reference has between the matched ends"""
    counted: bool = True
    """Whether precision looks at it: each end overlaps some reference object"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissedTriplet:
    """A reference triplet without a hit."""

    triplet: Names
    missed_ends: list[str]
    """Those of its ends that have no hit themselves; empty for the task `cls`"""


class Verdicts:
    """One completion held against its reference.

    Example: `Verdicts(parsed.columns, reference, ExactSimilarity(), "sgg").objects()`
    """

    def __init__(
        self, predicted: GraphColumns, reference: GraphColumns, similarity: Similarity, task: Task
    ) -> None:
        self._predicted, self._reference = predicted, reference
        one = np.zeros(1, dtype=np.int64)
        self._c = compare([predicted], [reference], one, similarity, boxes=task != "cls")
        self._cells = self._matched_cells()
        self._hits = self._reference_triplets(self._c.assigned_hits)
        self._alike = self._reference_triplets(self._c.assigned)
        pairs = self._c.triplets
        self._reaching = set(pairs.predicted[pairs.same_names & pairs.overlap].tolist())
        self._between = self._triplets_between()

    def objects(self) -> list[ObjectLine]:
        """In the order they were written; none for the task `cls`."""
        if self._c.pairs is None:
            return []
        boxes = boxes_of(self._predicted)
        return [
            self._object(i, name, box)
            for i, (name, box) in enumerate(zip(self._predicted.ids, boxes, strict=True))
        ]

    def missed_objects(self) -> list[MissedObject]:
        """In the reference's order; none for the task `cls`."""
        if self._c.pairs is None:
            return []
        matched = {line.reference: line for line in self.objects()}
        return [
            MissedObject(id=name, bbox=box, matched=line.id if line else None)
            for name, box in zip(self._reference.ids, boxes_of(self._reference), strict=True)
            for line in [matched.get(name)]
            if line is None or line.verdict != "hit"
        ]

    def triplets(self) -> list[TripletLine]:
        """In the order they were written."""
        reference = names_of_triplets(self._reference)
        lines = []
        for i, triplet in enumerate(names_of_triplets(self._predicted)):
            ends = (self._predicted.subjects[i], self._predicted.objects[i])
            wanted = self._between.get(self._reference_ends(ends), [])
            counted = bool(self._c.annotated[i])
            found = self._hits.get(i, self._alike.get(i))
            lines.append(
                TripletLine(
                    triplet=triplet,
                    verdict=self._triplet_verdict(i, wanted, counted=counted),
                    reference=None if found is None else reference[found],
                    wanted=[self._reference.predicates[w] for w in wanted],
                    counted=counted,
                )
            )
        return lines

    def missed_triplets(self) -> list[MissedTriplet]:
        """In the reference's order."""
        missed = {item.id for item in self.missed_objects()}
        got = set(self._hits.values())
        return [
            MissedTriplet(
                triplet=names, missed_ends=[end for end in (names[0], names[2]) if end in missed]
            )
            for i, names in enumerate(names_of_triplets(self._reference))
            if i not in got
        ]

    def _object(self, index: int, name: str, bbox: list[float]) -> ObjectLine:
        pairs, cell = self._c.pairs, self._cells.get(index)
        if pairs is None or cell is None:
            return ObjectLine(id=name, bbox=bbox, verdict="junk")
        found: dict[tuple[bool, bool], ObjectVerdict] = {
            (True, True): "hit",
            (True, False): "box_off" if self._is_near(cell) else "junk",
            (False, True): "wrong_name",
            (False, False): "junk",
        }
        return ObjectLine(
            id=name,
            bbox=bbox,
            verdict=found[bool(pairs.same_name[cell]), bool(pairs.overlap[cell])],
            reference=self._reference.ids[self._partner(cell)],
            iou=float(pairs.iou[cell]),
            similarity=float(pairs.similarity[cell]),
        )

    def _matched_cells(self) -> dict[int, int]:
        """The pair of each predicted object that is matched."""
        pairs = self._c.pairs
        if pairs is None:
            return {}
        places = self._c.predicted.written[pairs.predicted[pairs.matched]]
        return dict(zip(places.tolist(), pairs.matched.tolist(), strict=True))

    def _is_near(self, cell: int) -> bool:
        """Whether the boxes of a pair can be of one thing."""
        assert self._c.pairs is not None
        return bool(self._c.pairs.iou[cell] >= MIN_NEAR_IOU)

    def _partner(self, cell: int) -> int:
        """The reference object of a pair, as a place in `GraphColumns`."""
        assert self._c.pairs is not None
        return int(self._c.reference.written[self._c.pairs.reference[cell]])

    def _reference_triplets(self, pairs: Indices) -> dict[int, int]:
        """The reference triplet of each predicted one, for one-to-one triplet pairs."""
        triplets = self._c.triplets
        found = self._c.instance_triplet[triplets.instance[pairs]]
        return dict(zip(triplets.predicted[pairs].tolist(), found.tolist(), strict=True))

    def _triplets_between(self) -> dict[Hashable, list[int]]:
        """Reference triplets by their ends: objects, or for `cls` categories."""
        found: dict[Hashable, list[int]] = defaultdict(list)
        r = self._reference
        for i, (subject, object_) in enumerate(zip(r.subjects, r.objects, strict=True)):
            boxless = self._c.pairs is None
            ends = (r.categories[subject], r.categories[object_]) if boxless else (subject, object_)
            found[ends].append(i)
        return found

    def _reference_ends(self, ends: tuple[int, int]) -> Hashable:
        """What `_triplets_between` knows the ends of a predicted triplet as."""
        if self._c.pairs is None:
            return tuple(self._predicted.categories[end] for end in ends)
        cells = [self._cells.get(end) for end in ends]
        return tuple(
            None if cell is None or not self._is_near(cell) else self._partner(cell)
            for cell in cells
        )

    def _triplet_verdict(self, index: int, wanted: list[int], *, counted: bool) -> TripletVerdict:
        """What a predicted triplet is; `wanted` are the reference's between its matched ends."""
        if index in self._hits:
            return "hit"
        if index in self._alike:
            return "alike"
        if index in self._reaching:
            return "surplus"
        if not wanted:
            return "not_in_reference" if counted else "unannotated"
        p, r = self._predicted, self._reference
        if p.predicates[index] not in {r.predicates[w] for w in wanted}:
            return "wrong_predicate"
        written = p.categories[p.subjects[index]], p.categories[p.objects[index]]
        meant = r.categories[r.subjects[wanted[0]]], r.categories[r.objects[wanted[0]]]
        return "box_off" if written == meant else "wrong_name"


def boxes_of(columns: GraphColumns) -> list[list[float]]:
    """[N] boxes in the units that they were written in."""
    return [columns.coordinates[at : at + 4] for at in range(0, len(columns.coordinates), 4)]


def names_of_triplets(columns: GraphColumns) -> list[Names]:
    """[E] triplets by the ids of their ends."""
    ends = zip(columns.subjects, columns.predicates, columns.objects, strict=True)
    return [(columns.ids[s], predicate, columns.ids[o]) for s, predicate, o in ends]
