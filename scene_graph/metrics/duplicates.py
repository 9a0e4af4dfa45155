"""Which predicted items say again what an earlier one of their image has said."""

from collections.abc import Callable

import numpy as np

from scene_graph.matching import MIN_IOU, Flags
from scene_graph.metrics.hits import equal_pairs, iou, joint_codes
from scene_graph.metrics.table import GraphTable
from scene_graph.similarity import Indices


def duplicate_objects(table: GraphTable) -> Flags:
    """[O] whether an earlier object has the same name and IoU >= 0.5."""

    def alike(later: Indices, earlier: Indices) -> Flags:
        return iou(table.boxes[later], table.boxes[earlier]) >= MIN_IOU

    return _repeated(joint_codes(table.object_image, table.object_names), alike)


def duplicate_relations(table: GraphTable) -> Flags:
    """[E] whether an earlier relation has the same three names and both boxes IoU >= 0.5."""

    def alike(later: Indices, earlier: Indices) -> Flags:
        ends = (table.boxes[end] for end in (table.subjects, table.objects))
        first, second = (iou(boxes[later], boxes[earlier]) for boxes in ends)
        return np.minimum(first, second) >= MIN_IOU

    return _repeated(joint_codes(table.relation_image, *table.triplets), alike)


def _repeated(codes: Indices, alike: Callable[[Indices, Indices], Flags]) -> Flags:
    """[N] whether one of a smaller index has the same code and is alike."""
    flags = np.zeros(len(codes), dtype=np.bool_)
    for left, right in equal_pairs(codes, codes):
        before = right < left
        later, earlier = left[before], right[before]
        flags[later[alike(later, earlier)]] = True
    return flags
