"""How well boxes fit, names aside: the IoU of the pairs that the reward matches."""

import numpy as np

from scene_graph.boxes import Boxes
from scene_graph.matching import (
    GIOU_WEIGHT,
    L1_WEIGHT,
    SIMILARITY_WEIGHT,
    assign,
    iou_giou_l1,
    ranges,
)
from scene_graph.metrics.hits import portions
from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.table import GraphTable
from scene_graph.packing import starts
from scene_graph.similarity import Floats, Indices


def mean_iou(predicted: GraphTable, reference: GraphTable) -> RatioMetric:
    """Over all pairs of the optimal assignment (`scene_graph.matching`), whatever their names."""
    p, r = _Sorted(predicted), _Sorted(reference)
    sums = [_sums(p, r, images) for images in portions(p.counts * r.counts)]
    num_pairs = np.minimum(p.counts, r.counts).astype(np.float64)
    return RatioMetric.of_images(np.concatenate(sums), num_pairs)


class _Sorted:
    """A table's objects ordered by image, name and box: between equal costs no order decides."""

    def __init__(self, table: GraphTable) -> None:
        order = np.lexsort((*table.boxes.T, table.object_names, table.object_image))
        self.names = table.object_names[order]
        self.boxes = _fractions(table.boxes, table.sizes[table.object_image])[order]
        self.counts = table.objects_of_image
        self.start = starts(self.counts)


def _fractions(boxes: Boxes, sizes: Floats) -> Boxes:
    """[O, 4] of the image's sides; a box with its corners swapped becomes empty."""
    first = boxes[:, :2] / sizes
    return np.concatenate((first, np.maximum(boxes[:, 2:] / sizes, first)), axis=1)


def _sums(p: _Sorted, r: _Sorted, images: Indices) -> Floats:
    """[images] the sums of IoU."""
    rows, columns = p.counts[images], r.counts[images]
    counts = columns.repeat(rows)
    left = ranges(p.start[images], rows).repeat(counts)
    right = ranges(r.start[images].repeat(rows), counts)
    iou, giou, l1 = iou_giou_l1(p.boxes[left].T, r.boxes[right].T)
    different = p.names[left] != r.names[right]
    cost = SIMILARITY_WEIGHT * different + GIOU_WEIGHT * (1 - giou) + L1_WEIGHT * l1
    matched = assign(cost, rows, columns)
    image = np.arange(len(images)).repeat(rows * columns)
    return np.bincount(image[matched], iou[matched], len(images)).astype(np.float64)
