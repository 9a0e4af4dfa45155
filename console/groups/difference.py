"""A completion and its reference as graphs whose parts have verdicts, ready to be drawn.

Example: the reference has a man on a horse. The completion found the man, and put a box beside the
horse. Then the difference has the man (`hit`), the written horse (`near`, IoU 0.31) and the place
where it is (`near wanted`), and the relation between them (`near`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from console.views import shown_name
from evaluation.report.browser import drawable
from reward_service.explain.explainer import Explanation
from reward_service.explain.verdicts import ObjectLine, TripletLine
from reward_service.explain.words import object_reason, triplet_reason
from scene_graph.boxes import BoxSpace
from scene_graph.graph import GraphColumns, SceneGraph

Verdict = str
"""`hit`, `near` (with `wanted` for the reference's box), `miss`, `hallucination`, or `drawn` where
nothing is known"""
KINDS = {
    "hit": "hit",
    "alike": "near",
    "box_off": "near",
    "wrong_name": "near",
    "wrong_predicate": "near",
}
"""A verdict of `reward_service.explain` to one that is drawn; all others are hallucinations."""
_Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An object on a drawing."""

    name: str
    label: str
    """What stands beside its box; empty for none"""
    box: _Box | None
    """Pixels of the picture; None for the task `cls`"""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A relation on a drawing, between parts by index."""

    subject: int
    predicate: str
    object: int
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedGraph:
    """What is drawn over one picture."""

    objects: list[Part]
    relations: list[Link]

    def data(self, size: tuple[int, int]) -> dict[str, Any]:
        """As `drawing.js` takes it; boxes are cut to what can be drawn."""
        return {
            "objects": [
                {
                    "name": part.name,
                    "label": part.label,
                    "box": drawable(part.box, size),
                    "verdict": part.verdict,
                }
                for part in self.objects
            ],
            "relations": [
                {
                    "subject": link.subject,
                    "predicate": link.predicate,
                    "object": link.object,
                    "verdict": link.verdict,
                    "why": link.why,
                }
                for link in self.relations
            ],
        }


def plain_graph(graph: SceneGraph) -> JudgedGraph:
    """A graph that is held against nothing.

    Args:
        graph: Boxes in pixels of the picture.
    """
    places = {item.id: place for place, item in enumerate(graph.objects)}
    return JudgedGraph(
        objects=[_part(item.id, item.bbox, "drawn") for item in graph.objects],
        relations=[
            _link(edge.subject, edge.predicate, edge.object, "drawn", places)
            for edge in graph.relationships
        ],
    )


def judged_completion(found: Explanation, space: BoxSpace, size: tuple[int, int]) -> JudgedGraph:
    """All that a completion says.

    Args:
        found: The completion's.
        space: That its boxes are written in.
        size: The picture's width and height in pixels.
    """
    boxes = _in_pixels(found, space, size)
    objects = [_said(line, box) for line, box in zip(found.objects, boxes, strict=True)]
    return _with_triplets(objects, {line.id: i for i, line in enumerate(found.objects)}, found)


def judged_reference(
    reference: GraphColumns, found: Explanation, size: tuple[int, int]
) -> JudgedGraph:
    """All that the reference says, by what a completion found of it.

    Args:
        reference: Cleaned.
        found: The completion's.
        size: The picture's width and height in pixels.
    """
    near = _near_by_reference(found)
    missed = {item.id for item in found.missed_objects}
    boxes = reference.to_graph().scaled(*size).objects
    objects = []
    for item in boxes:
        verdict = ("near" if item.id in near else "miss") if item.id in missed else "hit"
        box = None if found.task == "cls" else item.bbox
        objects.append(_part(item.id, box, verdict))
    places = {name: place for place, name in enumerate(reference.ids)}
    gone = {item.triplet for item in found.missed_triplets}
    ends = zip(reference.subjects, reference.predicates, reference.objects, strict=True)
    names = [(reference.ids[s], predicate, reference.ids[o]) for s, predicate, o in ends]
    links = [_link(*name, "miss" if name in gone else "hit", places) for name in names]
    return JudgedGraph(objects=objects, relations=links)


def difference(found: Explanation, space: BoxSpace, size: tuple[int, int]) -> JudgedGraph:
    """What a completion hit, nearly hit, made up and missed, over one picture.

    Args:
        found: The completion's, held against a reference.
        space: That its boxes are written in.
        size: The picture's width and height in pixels.
    """
    said = judged_completion(found, space, size)
    objects, near = list(said.objects), _near_by_reference(found)
    places = {line.reference: i for i, line in enumerate(found.objects) if line.verdict == "hit"}
    for item in found.missed_objects:
        box = _four(item.bbox)
        part = _part(item.id, box, "miss")
        if item.id in near:
            part = Part(name=part.name, label="", box=box, verdict="near wanted")
        places[item.id] = len(objects)
        objects.append(part)
    for missed in found.missed_triplets:  # their ends, for the task cls, are written nowhere else
        for end in (missed.triplet[0], missed.triplet[2]):
            if end not in places:
                places[end] = len(objects)
                objects.append(_part(end, None, "miss"))
    named = {name: place for name, place in places.items() if name is not None}
    links = [_link(*item.triplet, "miss", named) for item in found.missed_triplets]
    return JudgedGraph(objects=objects, relations=[*said.relations, *links])


def _near_by_reference(found: Explanation) -> set[str]:
    """Reference objects that a completion nearly hit."""
    return {
        line.reference
        for line in found.objects
        if line.reference is not None and KINDS.get(line.verdict or "") == "near"
    }


def _in_pixels(found: Explanation, space: BoxSpace, size: tuple[int, int]) -> list[_Box | None]:
    (width, height), (unit_x, unit_y) = size, space.scale
    sides = (width / unit_x, height / unit_y) * 2
    if found.task == "cls":
        return [None] * len(found.objects)
    return [
        _four([side * scale for side, scale in zip(line.bbox, sides, strict=True)])
        for line in found.objects
    ]


def _four(box: Sequence[float]) -> _Box:
    x1, y1, x2, y2 = box
    return x1, y1, x2, y2


def _said(line: ObjectLine, box: _Box | None) -> Part:
    """A predicted object; a near one says what is wrong with it."""
    part = _part(line.id, box, kind_of(line))
    if line.verdict == "box_off" and line.iou is not None:
        label = f"{part.label} IoU {line.iou:.2f}"
    elif line.verdict == "wrong_name":
        label = f"{part.label} (it is {shown_name(line.reference or '')})"
    else:
        return part
    return Part(name=part.name, label=label, box=box, verdict=part.verdict)


def kind_of(line: ObjectLine | TripletLine) -> Verdict:
    """How a predicted part is drawn."""
    return "drawn" if line.verdict is None else KINDS.get(line.verdict, "hallucination")


def reason_of(line: ObjectLine | TripletLine) -> str:
    """Its verdict in words, with what the verdict does not say by itself."""
    why = object_reason(line) if isinstance(line, ObjectLine) else triplet_reason(line, shown_name)
    return ": ".join(filter(None, [(line.verdict or "").replace("_", " "), why]))


def _with_triplets(
    objects: list[Part], places: Mapping[str, int], found: Explanation
) -> JudgedGraph:
    """A completion's objects with its triplets; ends that are no objects are added."""
    known = dict(places)
    for line in found.triplets:
        for end in (line.triplet[0], line.triplet[2]):
            if end not in known:  # of the task cls: names alone
                known[end] = len(objects)
                objects.append(_part(end, None, kind_of(line)))
    links = []
    for line in found.triplets:
        verdict = kind_of(line)
        why = "" if verdict in ("hit", "drawn") else reason_of(line)
        links.append(_link(*line.triplet, verdict, known, why))
    return JudgedGraph(objects=objects, relations=links)


def _part(name: str, box: _Box | None, verdict: Verdict) -> Part:
    shown = shown_name(name)
    return Part(name=shown, label=shown, box=box, verdict=verdict)


def _link(
    subject: str,
    predicate: str,
    object_: str,
    verdict: Verdict,
    places: Mapping[str, int],
    why: str = "",
) -> Link:
    return Link(
        subject=places[subject],
        predicate=shown_name(predicate),
        object=places[object_],
        verdict=verdict,
        why=why,
    )
