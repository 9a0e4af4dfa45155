"""Average precision of boxes, which does not depend on the order of what has equal scores.

A language model gives its boxes no scores, so any order of them is as good as another. `ap` is the
mean over all these orders, exactly. COCO's own AP, by faster-coco-eval, stands beside it: it takes
equal scores in the order of images and of writing, so that another order gives another number.
"""

from typing import Any

import numpy as np

from scene_graph.matching import Flags
from scene_graph.metrics.hits import Pairs, iou, object_pairs
from scene_graph.metrics.table import GraphTable
from scene_graph.similarity import Floats, Indices

THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
"""[10] of IoU, as COCO has them"""
MAX_DETECTIONS = 100
"""Detections of an image and name that count, as in COCO: the best by score"""


def detection_ap(predicted: GraphTable, reference: GraphTable) -> dict[str, float]:
    """Average precision over the names in the references; predictions of other names are dropped.

    In 0..1; nan where no reference has an object. `ap` is the mean over `THRESHOLDS`; `coco_` are
    the same three by COCO's definition, equal scores in the order of the tables.

    Args:
        predicted: From `tabulate`, like `reference`.
        reference: The same images; for COCO's AP their order decides between equal scores.
    """
    codes = np.unique(reference.object_names)
    names = [*zip(_by_name(predicted, codes), _by_name(reference, codes), strict=True)]
    hits = matched(predicted, reference)
    expected = []
    for written, annotated in names:
        counted = _counted(predicted, written)
        expected.append(expected_ap(predicted.scores[counted], hits[:, counted], len(annotated)))
    values = np.stack(expected, axis=1) if expected else np.empty((len(THRESHOLDS), 0))
    # Name by name: together, faster-coco-eval makes a list for each name in each image.
    curves = [
        _coco_precision(_annotations(predicted, written), _annotations(reference, annotated))
        for written, annotated in names
    ]
    precision = np.stack(curves, axis=2) if curves else np.empty((len(THRESHOLDS), 101, 0))
    return {
        "ap": _mean(values),
        "ap50": _mean(values[0]),
        "ap75": _mean(values[5]),
        "coco_ap": _mean(precision),
        "coco_ap50": _mean(precision[0]),
        "coco_ap75": _mean(precision[5]),
    }


def expected_ap(scores: Floats, hits: Flags, num_reference: int) -> Floats:
    """[T] average precision of one name, the mean over all orders of detections of equal scores.

    Average precision is the sum, over the hits, of the precision among all detections up to the
    hit, divided by the number of references. Within N detections of one score, h of them hits, the
    one at place i is a hit in h/N of the orders, and then (i - 1)(h - 1)/(N - 1) of those before it
    are hits, too, on average (McSherry and Najork 2008, "Computing Information Retrieval
    Performance Measures Efficiently in the Presence of Tied Scores").

    Args:
        scores: [D] of the detections, in any order.
        hits: [T, D] whether each one has a reference object, at each threshold.
        num_reference: Objects of this name in the references, at least one.
    """
    order = np.argsort(-scores, kind="stable")
    _, first, group, size = np.unique(
        -scores[order], return_index=True, return_inverse=True, return_counts=True
    )
    so_far = np.pad(hits[:, order].cumsum(axis=1), ((0, 0), (1, 0)))
    before = so_far[:, first[group]]
    of_group = so_far[:, (first + size)[group]] - before
    place = np.arange(len(order))
    share_before = (place - first[group]) / np.maximum(size[group] - 1, 1)
    found = before + 1 + share_before * np.maximum(of_group - 1, 0)
    values: Floats = (of_group / size[group] * found / (place + 1)).sum(axis=1) / num_reference
    return values


def matched(predicted: GraphTable, reference: GraphTable) -> Flags:
    """[T, O] whether each predicted object gets a reference object, as COCO matches.

    In each image and name predictions come by falling score, those of equal scores as they were
    written; each takes the reference object that overlaps it most of those that are free.
    """
    pairs = object_pairs(predicted, reference)  # at the lowest threshold
    overlap = iou(predicted.boxes[pairs.predicted], reference.boxes[pairs.reference])
    scores = predicted.scores[pairs.predicted]
    order = np.lexsort((-pairs.reference, -overlap, pairs.predicted, -scores))
    pairs, overlap = pairs.kept(order), overlap[order]
    flags = np.zeros((len(THRESHOLDS), len(predicted.object_names)), dtype=np.bool_)
    for row, threshold in zip(flags, THRESHOLDS.tolist(), strict=True):
        row[_taken(pairs.kept(overlap >= threshold))] = True
    return flags


def _taken(pairs: Pairs) -> list[int]:
    """Predictions that get a reference; the pairs are tried in their order."""
    gets: set[int] = set()
    given: set[int] = set()
    for one, other in zip(pairs.predicted.tolist(), pairs.reference.tolist(), strict=True):
        if one not in gets and other not in given:
            gets.add(one)
            given.add(other)
    return [*gets]


def _counted(predicted: GraphTable, objects: Indices) -> Indices:
    """Without predictions beyond `MAX_DETECTIONS` of an image."""
    image, scores = predicted.object_image[objects], predicted.scores[objects]
    order = np.lexsort((-scores, image))
    ordered = image[order]
    place = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    counted: Indices = objects[order[place < MAX_DETECTIONS]]
    return counted


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else float("nan")


def _by_name(table: GraphTable, codes: Indices) -> list[Indices]:
    """[N] the places of each name's objects, image after image."""
    order = np.argsort(table.object_names, kind="stable")
    sorted_names = table.object_names[order]
    begins = np.searchsorted(sorted_names, codes)
    ends = np.searchsorted(sorted_names, codes, side="right")
    return [order[i:j] for i, j in zip(begins.tolist(), ends.tolist(), strict=True)]


def _coco_precision(detections: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Floats:
    """[10 thresholds, 101 recalls] COCO's interpolated precision of one name's boxes."""
    from faster_coco_eval import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    images = sorted({a["image_id"] for a in [*annotations, *detections]})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": 1}],
        "annotations": annotations,
    }
    truth.createIndex()
    evaluation = COCOeval_faster(truth, truth.loadRes(detections), iouType="bbox")
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.params.areaRng = evaluation.params.areaRng[:1]  # of any size
    evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: Floats = evaluation.eval["precision"][:, :, 0, 0, 0]
    return precision


def _annotations(table: GraphTable, objects: Indices) -> list[dict[str, Any]]:
    """In COCO's form: ids from 1, as it takes 0 for no match."""
    boxes = table.boxes[objects]
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    columns = (
        table.object_image[objects],
        np.concatenate((boxes[:, :2], sides), axis=1),
        sides.prod(axis=1),
        table.scores[objects],
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {
            "id": i,
            "image_id": image,
            "category_id": 1,
            "bbox": box,
            "area": area,
            "score": score,
            "iscrowd": 0,
        }
        for i, (image, box, area, score) in enumerate(rows, start=1)
    ]
