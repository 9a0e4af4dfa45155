"""COCO's average precision of the boxes, by faster-coco-eval.

A language model gives its boxes no scores. With equal scores detections count in the order of
images, and in an image in the order in which they were written: a curve over an arbitrary order.
Precision and recall of the strict protocol say more.
"""

from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np

from scene_graph.metrics.table import GraphTable
from scene_graph.similarity import Floats, Indices

MAX_DETECTIONS = 100
"""Of an image and name, as COCO has it: the best by score"""
_CELLS_AT_ONCE = 1 << 20
"""Images times names evaluated together: faster-coco-eval makes a list for each."""


class DetectionAp(TypedDict):
    """All in 0..1; nan where no reference has an object."""

    ap: float
    """Mean over IoU thresholds 0.50, 0.55, … 0.95"""
    ap50: float
    ap75: float
    ap50_by_name: dict[str, float]
    """For each name of a reference object"""


def detection_ap(predicted: GraphTable, reference: GraphTable) -> DetectionAp:
    """Average precision over the names in the references; predictions of other names are dropped.

    Args:
        predicted: From `tabulate`, like `reference`.
        reference: The same images; their order decides between equal scores.
    """
    names = np.unique(reference.object_names)
    at_once = max(1, _CELLS_AT_ONCE // max(reference.num_images, 1))
    parts = [np.empty((10, 101, 0))]
    parts += [_precision(predicted, reference, part) for part in _parts(names, at_once)]
    precision = np.concatenate(parts, axis=2)
    by_name = precision[0].mean(axis=0)
    return DetectionAp(
        ap=_mean(precision),
        ap50=_mean(precision[0]),
        ap75=_mean(precision[5]),
        ap50_by_name={
            reference.names[code]: value
            for code, value in zip(names.tolist(), by_name.tolist(), strict=True)
        },
    )


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else float("nan")


def _parts(names: Indices, at_once: int) -> Iterator[Indices]:
    for i in range(0, len(names), at_once):
        yield names[i : i + at_once]


def _precision(predicted: GraphTable, reference: GraphTable, names: Indices) -> Floats:
    """[10 thresholds, 101 recalls, names] interpolated precision."""
    from faster_coco_eval import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    annotations, detections = _annotations(reference, names), _annotations(predicted, names)
    # An image that has none of these names adds nothing.
    images = sorted({a["image_id"] for a in [*annotations, *detections]})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": code, "name": reference.names[code]} for code in names.tolist()],
        "annotations": annotations,
    }
    truth.createIndex()
    evaluation = COCOeval_faster(truth, truth.loadRes(detections), iouType="bbox")
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.params.areaRng = evaluation.params.areaRng[:1]  # of any size
    evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: Floats = evaluation.eval["precision"][:, :, :, 0, 0]
    return precision


def _annotations(table: GraphTable, names: Indices) -> list[dict[str, Any]]:
    """Objects of these names in COCO's form: ids from 1, as it takes 0 for no match."""
    kept = np.flatnonzero(np.isin(table.object_names, names))
    boxes = table.boxes[kept]
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    columns = (
        table.object_image[kept],
        table.object_names[kept],
        np.concatenate((boxes[:, :2], sides), axis=1),
        sides.prod(axis=1),
        table.scores[kept],
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {
            "id": i,
            "image_id": image,
            "category_id": name,
            "bbox": box,
            "area": area,
            "score": score,
            "iscrowd": 0,
        }
        for i, (image, name, box, area, score) in enumerate(rows, start=1)
    ]
