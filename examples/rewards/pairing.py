"""Which predicted part stands for which reference part: shared by the terms of this folder."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from scene_graph.graph import SceneGraph
from scene_graph.matching import iou_giou_l1


def overlaps(predicted: SceneGraph, reference: SceneGraph) -> np.ndarray:
    """[3, P, R] IoU, GIoU and L1 of all boxes."""
    p = np.array([item.bbox for item in predicted.objects]).reshape(-1, 4).T
    r = np.array([item.bbox for item in reference.objects]).reshape(-1, 4).T
    return np.array(iou_giou_l1(p[:, :, None], r[:, None, :]))


def matched_objects(predicted: SceneGraph, reference: SceneGraph) -> dict[str, str]:
    """Reference id to predicted id, one-to-one at the least (1 - sim) + 2 (1 - GIoU) + 5 L1."""
    _, giou, l1 = overlaps(predicted, reference)
    names = np.array([item.category for item in predicted.objects], dtype=object)[:, None]
    same = names == np.array([item.category for item in reference.objects], dtype=object)
    rows, columns = linear_sum_assignment((1 - same) + 2 * (1 - giou) + 5 * l1)
    return {
        reference.objects[column].id: predicted.objects[row].id
        for row, column in zip(rows, columns, strict=True)
    }


def triplet_hits(predicted: SceneGraph, reference: SceneGraph) -> int:
    """Triplets with three equal names and both IoU >= 0.5, one-to-one, as many as can be."""
    iou = overlaps(predicted, reference)[0]
    row = {item.id: index for index, item in enumerate(predicted.objects)}
    column = {item.id: index for index, item in enumerate(reference.objects)}
    hits = np.array(
        [
            [
                names(predicted, left) == names(reference, right)
                and iou[row[left.subject], column[right.subject]] >= 0.5
                and iou[row[left.object], column[right.object]] >= 0.5
                for right in reference.relationships
            ]
            for left in predicted.relationships
        ],
        dtype=float,
    ).reshape(len(predicted.relationships), len(reference.relationships))
    return int(hits[linear_sum_assignment(hits, maximize=True)].sum())


def names(graph: SceneGraph, edge) -> tuple[str, str, str]:
    """A triplet's three names."""
    category = {item.id: item.category for item in graph.objects}
    return category[edge.subject], edge.predicate, category[edge.object]
