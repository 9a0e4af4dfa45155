"""What became of each image: for `images.jsonl` and the report's browser."""

import math
from collections.abc import Sequence

import numpy as np

from evaluation.reading.predictions import PredictedImage
from evaluation.reading.references import References
from evaluation.result import DrawnGraph, DrawnObject, DrawnRelation, ImageResult, Verdict
from scene_graph.cleaning import Task
from scene_graph.matching import Flags
from scene_graph.metrics.ratio import number
from scene_graph.metrics.strict import StrictResult
from scene_graph.metrics.table import GraphTable


def image_results(
    references: References,
    predictions: Sequence[PredictedImage],
    tables: tuple[GraphTable, GraphTable],
    hits: StrictResult,
    task: Task,
) -> list[ImageResult]:
    """One result an image, in the order of the references.

    Args:
        references: B images.
        predictions: [B] theirs.
        tables: Predicted and reference, of these images.
        hits: What hit in these tables.
        task: Says which recall an image has.
    """
    predicted = _drawn(
        tables[0], hits.predicted_object_hits, hits.predicted_relation_hits, "hallucination"
    )
    reference = _drawn(tables[1], hits.reference_object_hits, hits.reference_relation_hits, "miss")
    recall = hits.by_image("triplet_recall" if task == "cls" else "recall@100").tolist()
    f1 = hits.by_image("triplet_f1").tolist()
    return [
        ImageResult(
            image_id=image_id,
            width=image.size[0],
            height=image.size[1],
            status=prediction.status,
            text=prediction.text,
            num_tokens=prediction.num_tokens,
            recall=number(recall[i]),
            f1=number(f1[i]),
            reference=reference[i],
            predicted=predicted[i],
        )
        for i, ((image_id, image), prediction) in enumerate(
            zip(references.images.items(), predictions, strict=True)
        )
    ]


def _drawn(table: GraphTable, objects: Flags, relations: Flags, wrong: Verdict) -> list[DrawnGraph]:
    verdicts: dict[bool, Verdict] = {True: "hit", False: wrong}
    names = [table.names[code] for code in table.object_names.tolist()]
    boxes = map(tuple, table.boxes.tolist())
    drawn = [
        DrawnObject(name=name, bbox=None if math.isnan(box[0]) else box, verdict=verdicts[hit])
        for name, box, hit in zip(names, boxes, objects.tolist(), strict=True)
    ]
    first_object = _first(table.objects_of_image)
    offset = np.array(first_object)[table.relation_image]
    columns = table.subjects - offset, table.predicates, table.objects - offset, relations
    edges = [
        DrawnRelation(
            subject=subject,
            predicate=table.predicate_names[predicate],
            object=object_,
            verdict=verdicts[hit],
        )
        for subject, predicate, object_, hit in zip(*(c.tolist() for c in columns), strict=True)
    ]
    first_edge = _first(table.relations_of_image)
    return [
        DrawnGraph(
            objects=drawn[first_object[i] : first_object[i + 1]],
            relations=edges[first_edge[i] : first_edge[i + 1]],
        )
        for i in range(table.num_images)
    ]


def _first(counts: np.ndarray) -> list[int]:
    """[B + 1] where each image's items begin."""
    return [0, *counts.cumsum().tolist()]
