"""COCO's average precision of the boxes, by faster-coco-eval.

A language model gives its boxes no scores. With equal scores detections count in the order of
images, and in an image in the order in which they were written: a curve over an arbitrary order.
Precision and recall of the strict protocol say more.
"""

from typing import Any, TypedDict

import numpy as np

from scene_graph.metrics.table import GraphTable
from scene_graph.similarity import Floats, Indices

MAX_DETECTIONS = 100
"""Of an image and name, as COCO has it: the best by score"""


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
    codes = np.unique(reference.object_names)
    # Name by name: together, faster-coco-eval makes a list for each name in each image.
    sides = zip(_by_name(predicted, codes), _by_name(reference, codes), strict=True)
    curves = [_precision(_annotations(predicted, p), _annotations(reference, r)) for p, r in sides]
    precision = np.stack(curves, axis=2) if curves else np.empty((10, 101, 0))
    by_name = precision[0].mean(axis=0)
    return DetectionAp(
        ap=_mean(precision),
        ap50=_mean(precision[0]),
        ap75=_mean(precision[5]),
        ap50_by_name={
            reference.names[code]: value
            for code, value in zip(codes.tolist(), by_name.tolist(), strict=True)
        },
    )


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else float("nan")


def _by_name(table: GraphTable, codes: Indices) -> list[Indices]:
    """The objects of each name, in the order of images."""
    order = np.argsort(table.object_names, kind="stable")
    sorted_names = table.object_names[order]
    begins = np.searchsorted(sorted_names, codes)
    ends = np.searchsorted(sorted_names, codes, side="right")
    return [order[i:j] for i, j in zip(begins.tolist(), ends.tolist(), strict=True)]


def _precision(detections: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Floats:
    """[10 thresholds, 101 recalls] interpolated precision of one name's boxes."""
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
