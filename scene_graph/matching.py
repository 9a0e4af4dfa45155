"""Which predicted object stands for which reference object, and which triplets could agree.

Cost of a pair (p, r) = 1 * (1 - sim(p, r)) + 2 * (1 - GIoU(p, r)) + 5 * L1(p, r), boxes in
fractions, L1 the sum of the four absolute differences: DETR's matching cost (arXiv 2005.12872) with
names in place of class probabilities, as in R1-SGG (arXiv 2504.13617). Optimal assignment; each
object is used at most once.

All graphs of a batch at once: pairs of predicted and reference items stand in flat arrays, and only
the assignment itself is solved graph by graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from scene_graph.boxes import Boxes
from scene_graph.graph import GraphColumns
from scene_graph.packing import PackedGraphs, pack, starts
from scene_graph.similarity import ExactSimilarity, Floats, Indices, Similarity

Flags = NDArray[np.bool_]

SIMILARITY_WEIGHT = 1.0
GIOU_WEIGHT = 2.0
L1_WEIGHT = 5.0
_TINY = float(np.finfo(np.float64).tiny)
MIN_IOU = 0.5
"""From here on two boxes are of the same thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectPairs:
    """Every predicted object with every reference object of its image: N pairs."""

    start: Indices
    """[Op + 1] first pair of each predicted object; they follow the order of reference objects"""
    predicted: Indices
    """[N] index of the predicted object"""
    reference: Indices
    """[N] index of the reference object"""
    similarity: Floats
    """[N] of names"""
    same_name: Flags
    """[N]"""
    iou: Floats
    """[N]"""
    l1: Floats
    """[N]"""
    overlap: Flags
    """[N] IoU >= 0.5"""
    cost: Floats
    """[N] of matching them"""
    matched: Indices
    """[M] the pairs of the optimal assignment"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TripletPairs:
    """Pairs of a predicted and a reference triplet of an image: K with alike predicates.

    A reference triplet that several completions are held against counts once for each: it has as
    many *instances*.
    """

    owner: Indices
    """[K] the completion"""
    predicted: Indices
    """[K] index of the predicted triplet"""
    instance: Indices
    """[K] instance of the reference triplet"""
    similarity: Floats
    """[K] product over subject, predicate and object, above 0"""
    same_names: Flags
    """[K] all three are equal"""
    overlap: Flags
    """[K] both boxes IoU >= 0.5; true where there are no boxes"""
    matched: Flags
    """[K] the ends of the one are matched with the ends of the other"""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """B predicted graphs held against their references: all that scores are made from."""

    names: list[str]
    """The name of each code in the arrays"""
    predicted: PackedGraphs
    """[B] graphs"""
    reference: PackedGraphs
    """[G] graphs"""
    group: Indices
    """[B] the reference of each predicted graph"""
    pairs: ObjectPairs | None
    """None where graphs have no boxes"""
    triplets: TripletPairs
    instance_owner: Indices
    """[I] the completion of each instance of a reference triplet"""
    instance_triplet: Indices
    """[I] index of the reference triplet"""

    def per_graph(self, owner: Indices, values: Floats | Flags | None = None) -> Floats:
        """[B] sums of values (or counts) by owner, added in the order given."""
        return np.bincount(owner, values, minlength=len(self.group)).astype(np.float64)

    @cached_property
    def assigned(self) -> Indices:
        """Triplet pairs, both boxes IoU >= 0.5: one-to-one, the greatest sum of similarities."""
        return self._one_to_one(self.triplets.overlap)

    @cached_property
    def assigned_hits(self) -> Indices:
        """Triplet pairs of equal names, both boxes IoU >= 0.5: one-to-one, as many as can be."""
        t = self.triplets
        if t.same_names[t.overlap].all():  # always so with exact similarity
            return self.assigned
        return self._one_to_one(t.overlap & t.same_names)

    @cached_property
    def annotated(self) -> Flags:
        """[Ep] predicted triplets whose two boxes each have IoU >= 0.5 with some reference object.

        Without boxes all of them.
        """
        p = self.predicted
        known = np.full(len(p.categories), self.pairs is None)
        if self.pairs is not None:
            known[self.pairs.predicted[self.pairs.overlap]] = True
        flags: Flags = known[p.subjects] & known[p.objects]
        return flags

    def _one_to_one(self, candidates: Flags) -> Indices:
        t, among = self.triplets, np.flatnonzero(candidates)
        chosen = one_to_one(
            t.owner[among], t.predicted[among], t.instance[among], t.similarity[among]
        )
        return among[chosen]


def compare(
    predicted: Sequence[GraphColumns],
    references: Sequence[GraphColumns],
    group: Indices,
    similarity: Similarity | None = None,
    *,
    boxes: bool = True,
) -> Comparison:
    """Hold predicted graphs against references.

    Args:
        predicted: B graphs from `parse_completion` or `clean_columns`.
        references: G graphs from `clean_columns`.
        group: [B] index of each one's reference.
        similarity: How alike names are; exact if None.
        boxes: False where graphs are triplets of names only (task `cls`).
    """
    similarity = similarity or ExactSimilarity()
    packed, names = pack([*predicted, *references])
    num_graphs = len(predicted) + len(references)
    p, r = packed.part(0, len(predicted)), packed.part(len(predicted), num_graphs)
    pairs = _object_pairs(p, r, group, names, similarity) if boxes else None
    counts = r.num_triplets[group]
    owner = np.arange(len(group)).repeat(counts)
    triplet = ranges(r.triplet_start[group], counts)
    return Comparison(
        names=names,
        predicted=p,
        reference=r,
        group=group,
        pairs=pairs,
        triplets=_triplet_pairs(p, r, pairs, owner, triplet, names, similarity),
        instance_owner=owner,
        instance_triplet=triplet,
    )


def one_to_one(owner: Indices, left: Indices, right: Indices, value: Floats) -> Indices:
    """Which of K pairs to keep, so that every item is in one pair at most and the sum is greatest.

    Args:
        owner: [K] the graph of each pair, ascending or not.
        left: [K] index of its one item; no two graphs share an item.
        right: [K] index of its other item.
        value: [K] above 0.

    Returns:
        [C] indices of the kept pairs. Cost: near-linear where all values are equal, else the
        assignment's among the items that several pairs want.
    """
    if not len(left):
        return np.empty(0, dtype=np.int64)
    alone = (np.bincount(left)[left] == 1) & (np.bincount(right)[right] == 1)
    kept = [np.flatnonzero(alone)]
    contested = np.flatnonzero(~alone)
    if len(contested):
        contested = contested[np.argsort(owner[contested], kind="stable")]
        edges = np.flatnonzero(np.diff(owner[contested])) + 1
        for part in np.split(contested, edges):
            _, row = np.unique(left[part], return_inverse=True)
            _, column = np.unique(right[part], return_inverse=True)
            kept.append(part[_best_cells(row, column, value[part])])
    return np.concatenate(kept)


def _best_cells(row: Indices, column: Indices, value: Floats) -> Indices:
    """`one_to_one` of the cells of one sparse matrix."""
    shape = (int(row.max()) + 1, int(column.max()) + 1)
    if value.min() == value.max():  # then as many as can be: near-linear, where weights are cubic
        where = csr_array((np.arange(1, len(row) + 1), (row, column)), shape=shape)
        partner = maximum_bipartite_matching(where, perm_type="column")
        return np.flatnonzero(partner[row] == column)
    table, cell = np.zeros(shape), np.full(shape, -1)
    table[row, column], cell[row, column] = value, np.arange(len(row))
    chosen = cell[linear_sum_assignment(table, maximize=True)]
    return chosen[chosen >= 0]


def iou_giou_l1(predicted: Boxes, reference: Boxes) -> tuple[Floats, Floats, Floats]:
    """Intersection over union, generalised IoU (arXiv 1902.09630) and L1 of N pairs of boxes.

    Args:
        predicted: [4, N] with x1 < x2 and y1 < y2, which `clean_columns` sees to.
        reference: [4, N], the same.

    Returns:
        [N] each.
    """
    px1, py1, px2, py2 = predicted
    rx1, ry1, rx2, ry2 = reference
    width = np.minimum(px2, rx2) - np.maximum(px1, rx1)
    height = np.minimum(py2, ry2) - np.maximum(py1, ry1)
    intersection = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    union = (px2 - px1) * (py2 - py1) + (rx2 - rx1) * (ry2 - ry1) - intersection
    hull = (np.maximum(px2, rx2) - np.minimum(px1, rx1)) * (
        np.maximum(py2, ry2) - np.minimum(py1, ry1)
    )
    # Areas of boxes thinner than 1e-154 are 0 in floating point: such a pair overlaps nothing.
    iou = np.minimum(intersection / np.maximum(union, _TINY), 1.0)
    giou = iou - (hull - union) / np.maximum(hull, _TINY)
    l1 = abs(px1 - rx1) + abs(py1 - ry1) + abs(px2 - rx2) + abs(py2 - ry2)
    return iou, giou, l1


def _object_pairs(
    p: PackedGraphs, r: PackedGraphs, group: Indices, names: list[str], similarity: Similarity
) -> ObjectPairs:
    counts = r.num_objects[group][p.object_graph]
    left = np.arange(len(counts)).repeat(counts)
    right = ranges(r.object_start[group][p.object_graph], counts)
    iou, giou, l1 = iou_giou_l1(p.boxes.take(left, axis=1), r.boxes.take(right, axis=1))
    name_left, name_right = p.categories[left], r.categories[right]
    sim = similarity.of_pairs(names, name_left, name_right)
    cost = SIMILARITY_WEIGHT * (1 - sim) + GIOU_WEIGHT * (1 - giou) + L1_WEIGHT * l1
    return ObjectPairs(
        start=starts(counts),
        predicted=left,
        reference=right,
        similarity=sim,
        same_name=name_left == name_right,
        iou=iou,
        l1=l1,
        overlap=iou >= MIN_IOU,
        cost=cost,
        matched=assign(cost, p.num_objects, r.num_objects[group]),
    )


def assign(cost: Floats, rows: Indices, columns: Indices) -> Indices:
    """The cells of the cheapest assignment of each of B matrices that stand one after another.

    Args:
        cost: [N] row by row.
        rows: [B]
        columns: [B]

    Returns:
        [M] indices into `cost`.
    """
    sizes = rows * columns
    ends, filled = sizes.cumsum(), sizes.nonzero()[0]
    if not len(filled):
        return filled
    solutions = [
        linear_sum_assignment(cost[end - p * r : end].reshape(p, r))
        for end, p, r in zip(
            ends[filled].tolist(), rows[filled].tolist(), columns[filled].tolist(), strict=True
        )
    ]
    row, column = map(np.concatenate, zip(*solutions, strict=True))
    counts = np.minimum(rows, columns)[filled]
    cells: Indices = row * columns[filled].repeat(counts)
    cells += column + (ends - sizes)[filled].repeat(counts)
    return cells


def _triplet_pairs(
    p: PackedGraphs,
    r: PackedGraphs,
    pairs: ObjectPairs | None,
    owner: Indices,
    triplet: Indices,
    names: list[str],
    similarity: Similarity,
) -> TripletPairs:
    counts = p.num_triplets[owner]
    instance = np.arange(len(owner)).repeat(counts)
    predicted = ranges(p.triplet_start[owner], counts)
    wanted = triplet[instance]
    sim = similarity.of_pairs(names, p.predicates[predicted], r.predicates[wanted])
    alike = sim.nonzero()[0]
    sim, predicted, instance, wanted = sim[alike], predicted[alike], instance[alike], wanted[alike]
    same = p.predicates[predicted] == r.predicates[wanted]
    overlap = np.ones(len(alike), dtype=np.bool_)
    matched = np.zeros(len(alike), dtype=np.bool_) if pairs is None else overlap.copy()
    partners = np.zeros(0 if pairs is None else len(pairs.iou), dtype=np.bool_)
    if pairs is not None:
        partners[pairs.matched] = True
    for p_end, r_end in ((p.subjects, r.subjects), (p.objects, r.objects)):
        left, right = p_end[predicted], r_end[wanted]
        same &= p.categories[left] == r.categories[right]
        if pairs is None:
            sim = sim * similarity.of_pairs(names, p.categories[left], r.categories[right])
        else:
            cell = pairs.start[left] + right - r.object_start[r.object_graph[right]]
            sim = sim * pairs.similarity[cell]
            overlap &= pairs.overlap[cell]
            matched &= partners[cell]
    kept = sim.nonzero()[0]
    return TripletPairs(
        owner=owner[instance[kept]],
        predicted=predicted[kept],
        instance=instance[kept],
        similarity=sim[kept],
        same_names=same[kept],
        overlap=overlap[kept],
        matched=matched[kept],
    )


def ranges(begins: Indices, counts: Indices) -> Indices:
    """`begins[i], begins[i] + 1, …`, `counts[i]` numbers of each, one after another."""
    numbers = np.arange(counts.sum())
    numbers += (begins + counts - counts.cumsum()).repeat(counts)
    return numbers
