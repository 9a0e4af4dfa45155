"""Which predicted items could stand for which reference items, and when each reference is found.

Pairs come from a join on names, not from all pairs of an image; only those whose boxes overlap are
kept. From the pairs follows a *rank* for each reference item: how many predictions of its image
come before the one that finds it. Recall among the first K is then the share of ranks below K.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from scene_graph.boxes import Boxes
from scene_graph.matching import MIN_IOU, Flags, one_to_one, ranges
from scene_graph.metrics.table import GraphTable
from scene_graph.similarity import Floats, Indices

NEVER = np.iinfo(np.int64).max
"""The rank of a reference item that nothing finds."""
_PAIRS_AT_ONCE = 1 << 18
"""Pairs whose boxes are held in memory together, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """N pairs of a predicted and a reference item of the same image, equal names, boxes alike."""

    image: Indices
    """[N]"""
    predicted: Indices
    """[N] index of the predicted item"""
    reference: Indices
    """[N] index of the reference item"""

    def kept(self, flags: Flags | Indices) -> "Pairs":
        """Those that [N] flags or indices name."""
        return Pairs(
            image=self.image[flags],
            predicted=self.predicted[flags],
            reference=self.reference[flags],
        )


def iou(predicted: Boxes, reference: Boxes, *, plus_one: bool = False) -> Floats:
    """[N] intersection over union of N pairs of boxes.

    Args:
        predicted: [N, 4] x1, y1, x2, y2; a box with a side of zero or less overlaps nothing.
        reference: [N, 4]
        plus_one: Whether sides are x2 - x1 + 1, a box's last pixel being inside of it.
    """
    extra = 1.0 if plus_one else 0.0
    first = np.maximum(predicted[:, :2], reference[:, :2])
    last = np.minimum(predicted[:, 2:], reference[:, 2:])
    intersection = np.maximum(last - first + extra, 0.0).prod(axis=1)
    areas = [(box[:, 2:] - box[:, :2] + extra).prod(axis=1) for box in (predicted, reference)]
    union = areas[0] + areas[1] - intersection
    overlapping = intersection > 0  # then both areas are above 0, and so is the union
    ratio: Floats = np.divide(intersection, union, out=np.zeros_like(union), where=overlapping)
    return ratio


def object_pairs(predicted: GraphTable, reference: GraphTable) -> Pairs:
    """Objects of equal name with IoU >= 0.5."""

    def alike(left: Indices, right: Indices) -> Flags:
        return iou(predicted.boxes[left], reference.boxes[right]) >= MIN_IOU

    return _join(
        (predicted.object_image, predicted.object_names),
        (reference.object_image, reference.object_names),
        alike,
    )


def triplet_pairs(predicted: GraphTable, reference: GraphTable, *, plus_one: bool = False) -> Pairs:
    """Relations with equal subject, predicate and object names, both boxes with IoU >= 0.5."""

    def alike(left: Indices, right: Indices) -> Flags:
        flags = np.ones(len(left), dtype=np.bool_)
        for p_end, r_end in (
            (predicted.subjects, reference.subjects),
            (predicted.objects, reference.objects),
        ):
            boxes = predicted.boxes[p_end[left]], reference.boxes[r_end[right]]
            flags &= iou(*boxes, plus_one=plus_one) >= MIN_IOU
        return flags

    left, right = ((table.relation_image, *table.triplets) for table in (predicted, reference))
    return _join(left, right, alike)


def ranking(table: GraphTable, kept: Flags | None = None) -> Indices:
    """[E] how many relations of the image come before each one, by score.

    The score is the product of the relation's and its objects'; equal ones stay in the order they
    were written in.

    Args:
        table: E relations.
        kept: [E] those that count; the rank of the others is `NEVER`.
    """
    order = np.lexsort((-scores(table), table.relation_image))
    if kept is not None:
        order = order[kept[order]]
    ranks = np.full(len(table.relation_image), NEVER)
    ranks[order] = positions(table.relation_image[order], table.num_images)
    return ranks


def portions(counts: Indices) -> list[Indices]:
    """Indices of [N] items with so many pairs each, `_PAIRS_AT_ONCE` or so at a time."""
    steps = np.arange(_PAIRS_AT_ONCE, counts.sum(), _PAIRS_AT_ONCE)
    return np.split(np.arange(len(counts)), np.searchsorted(counts.cumsum(), steps))


def positions(image: Indices, num_images: int) -> Indices:
    """[N] places of items in their image, from 0; the images of the N items ascend."""
    counts = np.bincount(image, minlength=num_images)
    return np.arange(len(image)) - (counts.cumsum() - counts)[image]


def scores(table: GraphTable) -> Floats:
    """[E] of relations with their objects: the product of all three."""
    ends = table.scores[table.subjects] * table.scores[table.objects]
    return ends * table.relation_scores


def first_of_each_pair(table: GraphTable) -> Flags:
    """[E] the best-ranked relation of each ordered pair of objects: the graph constraint."""
    order = np.lexsort((-scores(table), table.relation_image))
    pair = table.subjects * len(table.scores) + table.objects
    _, first = np.unique(pair[order], return_index=True)
    return flags_at(order[first], len(order))


def flags_at(places: Indices, length: int) -> Flags:
    """[length] true at some places."""
    flags = np.zeros(length, dtype=np.bool_)
    flags[places] = True
    return flags


def found_by_any(pairs: Pairs, ranks: Indices, num_reference: int) -> Indices:
    """[num_reference] the best rank among all predictions that hit a reference item.

    Args:
        pairs: Predictions with references.
        ranks: [predictions]
        num_reference: How many references there are.
    """
    found = np.full(num_reference, NEVER)
    np.minimum.at(found, pairs.reference, ranks[pairs.predicted])
    return found


def assign_by_rank(pairs: Pairs, ranks: Indices) -> Pairs:
    """One-to-one pairs, such that among the first K predictions as many hit as can, for every K.

    One assignment serves all K: the sets of predictions that can hit together are a matroid
    (transversal), so the greatest sum of weights that fall with the rank takes the best of every
    beginning (Edmonds 1971), whatever the weights are.

    Args:
        pairs: All predictions in them have a rank.
        ranks: [predictions] different within an image.
    """
    weights = 1.0 + ranks[pairs.predicted].max(initial=0) - ranks[pairs.predicted]
    chosen = one_to_one(pairs.image, pairs.predicted, pairs.reference, weights)
    return pairs.kept(chosen)


def joint_codes(*columns: Indices) -> Indices:
    """[N] a number for each distinct row of columns [N], all of 0 and more; below N."""
    _, codes = np.unique(columns[0], return_inverse=True)
    for column in columns[1:]:
        # Numbered anew at each step: the product of many sizes would not fit in 64 bits.
        _, codes = np.unique(codes * (column.max(initial=0) + 1) + column, return_inverse=True)
    return codes


def _join(
    predicted: tuple[Indices, ...],
    reference: tuple[Indices, ...],
    alike: Callable[[Indices, Indices], Flags],
) -> Pairs:
    """Pairs that are equal in all columns and alike; the first column is the image."""
    both = [np.concatenate(columns) for columns in zip(predicted, reference, strict=True)]
    codes = joint_codes(*both)
    num_predicted = len(predicted[0])
    parts = [np.empty((2, 0), dtype=np.int64)]
    for left, right in equal_pairs(codes[:num_predicted], codes[num_predicted:]):
        parts.append(np.stack((left, right))[:, alike(left, right)])
    left, right = np.concatenate(parts, axis=1)
    return Pairs(image=predicted[0][left], predicted=left, reference=right)


def equal_pairs(left: Indices, right: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Indices of equal items of [L] and [R], `_PAIRS_AT_ONCE` or so at a time."""
    order = np.argsort(right, kind="stable")
    begins = np.searchsorted(right, left, sorter=order)
    counts = np.searchsorted(right, left, side="right", sorter=order) - begins
    for part in portions(counts):
        yield part.repeat(counts[part]), order[ranges(begins[part], counts[part])]
