"""The terms of docs/rewards.md as plain loops, which the benchmark compares with.

The baseline of `benchmarks/reward.py` and the oracle of `test_against_loops.py`. Nothing here is
shared with the reward service, so an error in one is not in the other. Well-formed graphs only: a
text that is not the expected JSON scores 0, and nothing is repaired.

    question = Question(reference=…, image_size=(800, 600), box_space="relative_1000")
    score_alone(text, question, ["format", "edge"])    # each term reads and matches by itself
    score_shared(text, question, ["format", "edge"])   # one reading and one matching for all
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Box = list[float]
Graph = dict[str, list[dict[str, Any]]]
"""`objects` of `{"id", "name", "box"}`, boxes as fractions; `relationships` of `{"subject",
"predicate", "object"}` with ids."""


def exact(left: str, right: str) -> float:
    """1 for equal names, else 0."""
    return 1.0 if left == right else 0.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a completion is held against.

    Example: `Question(reference={"objects": [], "relationships": []}, image_size=(800, 600),
    box_space="relative_1000")`
    """

    reference: Graph
    """As in a request: `objects` of `{"id", "bbox"}` in pixels, `relationships`."""
    image_size: tuple[int, int]
    box_space: str
    """The completions' space of boxes."""
    require_thinking: bool = False
    sim: Callable[[str, str], float] = exact
    beta: float = 1.0
    predicate_frequency: dict[str, float] = field(default_factory=dict)
    length: tuple[int, int] = (0, 1)
    """Characters where the length penalty starts, and where nothing is left."""


class Case:
    """A completion with its question; reads and matches when first asked to, and once."""

    def __init__(self, text: str, question: Question):
        self.text = text
        self.question = question

    @cached_property
    def predicted(self) -> Graph | None:
        """The graph in the text; None when it cannot be read."""
        return read_graph(self.text, self.question.box_space)

    @cached_property
    def reference(self) -> Graph:
        """The reference with clean names and boxes as fractions."""
        width, height = self.question.image_size
        return clean(self.question.reference, float(width), float(height))

    @cached_property
    def ends(self) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Predicted and reference objects by id."""
        predicted = self.predicted["objects"] if self.predicted else []
        by_id = {item["id"]: item for item in predicted}
        return by_id, {item["id"]: item for item in self.reference["objects"]}

    @cached_property
    def matching(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Pairs of a predicted and a reference object."""
        if self.predicted is None:
            return []
        return match(self.predicted["objects"], self.reference["objects"], self.question.sim)


def score_alone(text: str, question: Question, names: Iterable[str]) -> dict[str, float]:
    """Terms by name, each from the text on: how published reward functions do it."""
    return {name: TERMS[name](Case(text, question)) for name in names}


def score_shared(text: str, question: Question, names: Iterable[str]) -> dict[str, float]:
    """Terms by name, with one reading and one matching for all of them."""
    case = Case(text, question)
    return {name: TERMS[name](case) for name in names}


def read_graph(text: str, box_space: str) -> Graph | None:
    """The graph in a completion, or None."""
    found = re.search(r"<answer>(.*?)(</answer>|$)", text, re.DOTALL)
    body = found.group(1) if found else text
    try:
        graph = json.loads(body)
        if box_space == "relative_1000":
            return clean(graph, 1000.0, 1000.0)
        if box_space == "relative_1":
            return clean(graph, 1.0, 1.0)
        width, height = box_space.removeprefix("pixels:").split("x")
        return clean(graph, float(width), float(height))
    except (ValueError, KeyError, TypeError):
        return None


def clean(graph: Graph, width: float, height: float) -> Graph:
    """A graph as written, with clean names and boxes as fractions."""
    objects = []
    for item in graph["objects"]:
        x1, y1, x2, y2 = item["bbox"]
        box = [x1 / width, y1 / height, x2 / width, y2 / height]
        objects.append(
            {"id": item["id"], "name": clean_name(item["id"].rpartition(".")[0]), "box": box}
        )
    relationships = [
        {
            "subject": edge["subject"],
            "predicate": clean_name(edge["predicate"]),
            "object": edge["object"],
        }
        for edge in graph["relationships"]
    ]
    return {"objects": objects, "relationships": relationships}


def clean_name(name: str) -> str:
    """Lower case, `_` and `-` as spaces, one space at a time."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def area(box: Box) -> float:
    """Width times height."""
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(a: Box, b: Box) -> float:
    """Area of the intersection."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    shared = overlap(a, b)
    return shared / (area(a) + area(b) - shared)


def giou(a: Box, b: Box) -> float:
    """Generalised IoU (arXiv 1902.09630): IoU less the empty share of the smallest box around."""
    shared = overlap(a, b)
    union = area(a) + area(b) - shared
    around = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    return shared / union - (around - union) / around


def l1(a: Box, b: Box) -> float:
    """Sum of the four coordinate differences."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def match(
    predicted: list[dict[str, Any]],
    reference: list[dict[str, Any]],
    sim: Callable[[str, str], float],
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The assignment of least total cost, as pairs of predicted and reference object."""
    if not predicted or not reference:
        return []
    cost = np.zeros((len(predicted), len(reference)))
    for i, p in enumerate(predicted):
        for j, r in enumerate(reference):
            cost[i, j] = (
                1.0 * (1.0 - sim(p["name"], r["name"]))
                + 2.0 * (1.0 - giou(p["box"], r["box"]))
                + 5.0 * l1(p["box"], r["box"])
            )
    rows, columns = linear_sum_assignment(cost)
    return [(predicted[i], reference[j]) for i, j in zip(rows, columns, strict=True)]


def format_term(case: Case) -> float:
    """1 for a whole graph with objects in exactly the tags that the prompt asked for."""
    thinking = r"<think>.*?</think>\s*"
    pattern = thinking if case.question.require_thinking else f"({thinking})?"
    tagged = re.fullmatch(rf"\s*{pattern}<answer>.*</answer>\s*", case.text, re.DOTALL)
    return 1.0 if tagged and case.predicted and _is_whole(case.predicted) else 0.0


def _is_whole(graph: Graph) -> bool:
    """Whether it has objects, and nothing in it has to be dropped."""
    ids = [item["id"] for item in graph["objects"]]
    edges = [(e["subject"], e["predicate"], e["object"]) for e in graph["relationships"]]
    upright = all(o["box"][0] < o["box"][2] and o["box"][1] < o["box"][3] for o in graph["objects"])
    known = all(subject in ids and target in ids for subject, _, target in edges)
    unique = len(set(ids)) == len(ids) and len(set(edges)) == len(edges)
    return bool(ids) and upright and known and unique


def node_category(case: Case) -> float:
    """How alike matched names are, per reference object."""
    if not case.reference["objects"]:
        return 0.0
    total = sum(case.question.sim(p["name"], r["name"]) for p, r in case.matching)
    return total / len(case.reference["objects"])


def node_box(case: Case) -> float:
    """How near matched boxes are, per reference object."""
    if not case.reference["objects"]:
        return 0.0
    total = 0.0
    for p, r in case.matching:
        total += (2 * iou(p["box"], r["box"]) + 5 * math.exp(-l1(p["box"], r["box"]))) / 7
    return total / len(case.reference["objects"])


def edge(case: Case) -> float:
    """The best predicate between each reference triplet's matched ends."""
    references = case.reference["relationships"]
    if case.predicted is None or not references:
        return 0.0
    sim = case.question.sim
    partner = {r["id"]: (p, sim(p["name"], r["name"])) for p, r in case.matching}
    total = 0.0
    for wanted in references:
        if wanted["subject"] not in partner or wanted["object"] not in partner:
            continue
        subject, subject_sim = partner[wanted["subject"]]
        target, target_sim = partner[wanted["object"]]
        best = 0.0
        for found in case.predicted["relationships"]:
            if found["subject"] == subject["id"] and found["object"] == target["id"]:
                best = max(best, sim(found["predicate"], wanted["predicate"]))
        total += subject_sim * target_sim * best
    return total / len(references)


def edge_hard(case: Case) -> float:
    """Share of reference triplets that are found, names equal and boxes over half."""
    references = case.reference["relationships"]
    if not references:
        return 0.0
    return sum(_is_found(case, wanted) for wanted in references) / len(references)


def predicate_balanced(case: Case) -> float:
    """`edge_hard` where rare predicates weigh more."""
    found = wanted_weight = 0.0
    for wanted in case.reference["relationships"]:
        weight = 1.0 / case.question.predicate_frequency[wanted["predicate"]]
        wanted_weight += weight
        found += weight * _is_found(case, wanted)
    return found / wanted_weight if wanted_weight else 0.0


def _is_found(case: Case, wanted: dict[str, Any]) -> bool:
    """Whether some predicted triplet has the names and the boxes of a reference triplet."""
    if case.predicted is None:
        return False
    predicted, reference = case.ends
    subject, target = reference[wanted["subject"]], reference[wanted["object"]]
    for triplet in case.predicted["relationships"]:
        s, o = predicted[triplet["subject"]], predicted[triplet["object"]]
        names = (s["name"], triplet["predicate"], o["name"])
        if names != (subject["name"], wanted["predicate"], target["name"]):
            continue
        if iou(s["box"], subject["box"]) >= 0.5 and iou(o["box"], target["box"]) >= 0.5:
            return True
    return False


def edge_hard_relaxed(case: Case) -> float:
    """The best predicted triplet of each reference triplet, by likeness of names."""
    products = _triplet_products(case)
    if products.shape[1] == 0:
        return 0.0
    best: list[float] = [max(column, default=0.0) for column in products.T.tolist()]
    return sum(best) / len(best)


def triplet_f1(case: Case) -> float:
    """F-beta of triplets assigned one to one; precision over those between known boxes."""
    products = _triplet_products(case)
    rows, columns = linear_sum_assignment(products, maximize=True)
    found = float(products[rows, columns].sum())
    counted = _num_counted(case)
    if not found:
        return 0.0
    precision, recall = found / counted, found / len(case.reference["relationships"])
    weight = case.question.beta**2
    return (1 + weight) * precision * recall / (weight * precision + recall)


def _triplet_products(case: Case) -> NDArray[np.float64]:
    """[P, R] product of the three likenesses, 0 unless both boxes are over half."""
    references = case.reference["relationships"]
    triplets = case.predicted["relationships"] if case.predicted else []
    sim = case.question.sim
    predicted, reference = case.ends
    products = np.zeros((len(triplets), len(references)))
    for i, found in enumerate(triplets):
        s, o = predicted[found["subject"]], predicted[found["object"]]
        for j, wanted in enumerate(references):
            subject, target = reference[wanted["subject"]], reference[wanted["object"]]
            product = (
                sim(s["name"], subject["name"])
                * sim(found["predicate"], wanted["predicate"])
                * sim(o["name"], target["name"])
            )
            if product and iou(s["box"], subject["box"]) >= 0.5:
                products[i, j] = product if iou(o["box"], target["box"]) >= 0.5 else 0.0
    return products


def _num_counted(case: Case) -> int:
    """Predicted triplets whose two boxes each lie on some reference object."""
    if case.predicted is None:
        return 0
    on_something = {
        item["id"]: any(iou(item["box"], r["box"]) >= 0.5 for r in case.reference["objects"])
        for item in case.predicted["objects"]
    }
    return sum(
        on_something[triplet["subject"]] and on_something[triplet["object"]]
        for triplet in case.predicted["relationships"]
    )


def object_precision(case: Case) -> float:
    """Share of predicted objects that are right in name and box."""
    if not case.predicted or not case.predicted["objects"]:
        return 0.0
    right = [
        p for p, r in case.matching if p["name"] == r["name"] and iou(p["box"], r["box"]) >= 0.5
    ]
    return len(right) / len(case.predicted["objects"])


def length_penalty(case: Case) -> float:
    """1 for short completions, 0 for long ones, a straight line between."""
    start, end = case.question.length
    beyond = (len(case.text) - start) / (end - start)
    return 1.0 - min(1.0, max(0.0, beyond)) if case.predicted is not None else 0.0


TERMS: dict[str, Callable[[Case], float]] = {
    "format": format_term,
    "node_category": node_category,
    "node_box": node_box,
    "edge": edge,
    "edge_hard": edge_hard,
    "edge_hard_relaxed": edge_hard_relaxed,
    "triplet_f1": triplet_f1,
    "object_precision": object_precision,
    "predicate_balanced": predicate_balanced,
    "length_penalty": length_penalty,
}
