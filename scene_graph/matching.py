"""Which predicted object stands for which reference object.

Cost of a pair (p, r) = 1 * (1 - sim(p, r)) + 2 * (1 - GIoU(p, r)) + 5 * L1(p, r), boxes in
fractions, L1 the sum of the four absolute differences: DETR's matching cost (arXiv 2005.12872) with
names in place of class probabilities, as in R1-SGG (arXiv 2504.13617). Optimal assignment; each
object is used at most once. All pairs at once, as arrays: Python loops would dominate scoring.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from scene_graph.boxes import Boxes
from scene_graph.graph import SceneGraph, normalise_name

PairMatrix = NDArray[np.float64]
"""[P, R] one number for each predicted and reference item."""
Indices = NDArray[np.int64]

SIMILARITY_WEIGHT = 1.0
GIOU_WEIGHT = 2.0
L1_WEIGHT = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphArrays:
    """A cleaned graph as arrays.

    Objects are sorted by id, so that no score depends on the order they were written in.
    """

    categories: list[str]
    """[N] normalised"""
    boxes: Boxes
    """[N, 4] in fractions"""
    predicates: list[str]
    """[E] normalised"""
    subjects: Indices
    """[E] index of each triplet's subject among the objects"""
    objects: Indices
    """[E]"""

    @classmethod
    def from_graph(cls, graph: SceneGraph) -> "GraphArrays":
        """Arrays of a graph that `clean_graph` made: unique ids, no dangling relationships."""
        items = sorted(graph.objects, key=lambda item: item.id)
        index = {item.id: i for i, item in enumerate(items)}
        edges = graph.relationships
        return cls(
            categories=[normalise_name(item.category) for item in items],
            boxes=np.array([item.bbox for item in items], dtype=np.float64).reshape(-1, 4),
            predicates=[edge.predicate for edge in edges],
            subjects=np.array([index[edge.subject] for edge in edges], dtype=np.int64),
            objects=np.array([index[edge.object] for edge in edges], dtype=np.int64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectMatching:
    """The assignment, and the pair matrices it was made from.

    P predicted objects, R reference objects, M = min(P, R) pairs.
    """

    predicted: Indices
    """[M]"""
    reference: Indices
    """[M]"""
    similarity: PairMatrix
    """[P, R] of categories, 0..1"""
    iou: PairMatrix
    """[P, R]"""
    l1: PairMatrix
    """[P, R]"""


def exact_similarity(predicted: Sequence[str], reference: Sequence[str]) -> PairMatrix:
    """[P, R] 1 where normalised names are equal, else 0."""
    code: dict[str, int] = {}
    left = np.array([code.setdefault(name, len(code)) for name in predicted], dtype=np.int64)
    right = np.array([code.setdefault(name, len(code)) for name in reference], dtype=np.int64)
    same: PairMatrix = (left[:, None] == right[None, :]).astype(np.float64)
    return same


def iou_and_giou(predicted: Boxes, reference: Boxes) -> tuple[PairMatrix, PairMatrix]:
    """[P, R] intersection over union, and generalised IoU (arXiv 1902.09630).

    Args:
        predicted: [P, 4] with x1 < x2 and y1 < y2, which `clean_graph` sees to.
        reference: [R, 4], the same.
    """
    p, r = predicted[:, None, :], reference[None, :, :]
    overlap = np.minimum(p[..., 2:], r[..., 2:]) - np.maximum(p[..., :2], r[..., :2])
    intersection = np.clip(overlap, 0.0, None).prod(axis=-1)
    area_p = (predicted[:, 2:] - predicted[:, :2]).prod(axis=-1)[:, None]
    area_r = (reference[:, 2:] - reference[:, :2]).prod(axis=-1)[None, :]
    union = area_p + area_r - intersection
    hull = (np.maximum(p[..., 2:], r[..., 2:]) - np.minimum(p[..., :2], r[..., :2])).prod(axis=-1)
    # Areas of boxes thinner than 1e-154 are 0 in floating point: such a pair overlaps nothing.
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    void = np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)
    return np.clip(iou, 0.0, 1.0), iou - void


def match_objects(predicted: GraphArrays, reference: GraphArrays) -> ObjectMatching:
    """The cheapest one-to-one assignment; every object of the smaller side gets a partner."""
    similarity = exact_similarity(predicted.categories, reference.categories)
    iou, giou = iou_and_giou(predicted.boxes, reference.boxes)
    l1 = np.abs(predicted.boxes[:, None, :] - reference.boxes[None, :, :]).sum(axis=-1)
    cost = SIMILARITY_WEIGHT * (1 - similarity) + GIOU_WEIGHT * (1 - giou) + L1_WEIGHT * l1
    rows, columns = linear_sum_assignment(cost)
    return ObjectMatching(predicted=rows, reference=columns, similarity=similarity, iou=iou, l1=l1)


def triplet_hits(
    predicted: GraphArrays, reference: GraphArrays, similarity: PairMatrix, iou: PairMatrix
) -> NDArray[np.bool_]:
    """[Ep, Er] whether a predicted triplet is a reference triplet.

    It is when the three names are equal and both boxes have IoU >= 0.5.

    Args:
        predicted: With Ep triplets.
        reference: With Er triplets.
        similarity: [P, R] of the objects' categories.
        iou: [P, R] of the objects' boxes.
    """
    found = (similarity >= 1.0) & (iou >= 0.5)
    subjects = found[np.ix_(predicted.subjects, reference.subjects)]
    objects = found[np.ix_(predicted.objects, reference.objects)]
    return subjects & objects & (exact_similarity(predicted.predicates, reference.predicates) > 0)


def one_to_one(hits: NDArray[np.bool_]) -> Indices:
    """The reference items that are hit when each predicted item claims one, as many as possible.

    Args:
        hits: [P, R] which predicted item could claim which reference item.
    """
    if not hits.any():
        return np.empty(0, dtype=np.int64)
    claimed_by = maximum_bipartite_matching(csr_array(hits), perm_type="row")
    return np.flatnonzero(claimed_by >= 0)
