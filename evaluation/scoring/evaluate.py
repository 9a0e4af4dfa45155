"""All that an evaluation finds, from what was read: the metrics of every protocol and their sums.

Pure but for what `detection_ap` prints away; `sgg-rl evaluate` reads before and writes after.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.reading.predictions import PredictedImage, Predictions
from evaluation.reading.problems import Problems
from evaluation.reading.references import References
from evaluation.reading.training_split import TrainingSplit
from evaluation.result import PROTOCOLS, EvaluationResult
from evaluation.scoring.answers import answer_metrics
from evaluation.scoring.confidence import confidences
from evaluation.scoring.detection import detection_ap
from evaluation.scoring.image_results import image_results
from evaluation.scoring.mapping import Mapper, map_graphs
from evaluation.scoring.predicates import group_means, predicate_rows
from scene_data.vocabulary import Vocabulary
from scene_graph.cleaning import Task
from scene_graph.metrics.bootstrap import interval, resampled
from scene_graph.metrics.r1_sgg import r1_sgg
from scene_graph.metrics.ratio import RatioMetric, number
from scene_graph.metrics.sgb import sgb
from scene_graph.metrics.strict import StrictResult, strict
from scene_graph.metrics.table import GraphTable, ImageGraph, tabulate

OBJECT_METRICS = {
    "recall": "object_recall",
    "precision": "object_precision",
    "f1": "object_f1",
    "mean_iou": "mean_iou",
}
"""Metrics of `strict`, by their names in `EvaluationResult.objects`"""
TRIPLET_METRICS = ("triplet_recall", "triplet_precision", "triplet_f1")

Tables = tuple[GraphTable, GraphTable]
"""Predicted and reference"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How predictions are looked at."""

    split: str
    """The references' name, for headings"""
    task: Task = "sgg"
    mapper: Mapper | None = None
    """To a closed vocabulary"""
    training: TrainingSplit | None = None


def evaluate(
    predictions: Predictions, references: References, problems: Problems, options: Options
) -> EvaluationResult:
    """Compare; images without a prediction count as empty graphs.

    Args:
        predictions: Their names are mapped in place.
        references: Every image of these is evaluated.
        problems: Those of reading; names outside the vocabulary are added.
        options: What else there is.
    """
    answers = [_answer(predictions, references, image_id) for image_id in references.images]
    mapping = map_graphs([a.graph for a in answers], options.mapper) if options.mapper else {}
    if options.mapper:
        _check_names(references, options.mapper.vocabulary)
    graphs = [image.graph for image in references.images.values()]
    tables = _tables([answer.graph for answer in answers], graphs, options.task)
    metrics, hits = all_metrics(tables, options)
    metrics["answers"] = answer_metrics(answers, tables, predictions.settings, options.task)
    values = {name: _values(group) for name, group in metrics.items()}
    intervals = _intervals(metrics, len(graphs))
    by_protocol = {p: metrics[p] for p in PROTOCOLS if p in metrics}
    rows = predicate_rows(
        *tables, by_protocol, options.training.predicates if options.training else None
    )
    return EvaluationResult(
        split=options.split,
        name=predictions.name,
        num_images=len(graphs),
        task=options.task,
        protocols={p: _num_images(by_protocol[p]) | values[p] for p in by_protocol},
        intervals={p: intervals[p] for p in by_protocol},
        objects=_average_precision(tables) | values["objects"] if "objects" in values else {},
        object_intervals=intervals.get("objects", {}),
        answers={"unconstrained_failure_rate": None, **values["answers"]},
        answer_intervals=intervals["answers"],
        confidence=confidences(tables[0], hits, options.task),
        failures=dict(Counter(a.status for a in answers if a.status != "ok").most_common()),
        predicates=rows,
        groups=group_means(rows),
        mapping=mapping,
        settings=predictions.settings,
        problem_counts=dict(sorted(problems.counts.items())),
        problems=problems.listed,
        metrics=metrics,
        class_names=list(tables[1].predicate_names),
        images=image_results(references, answers, tables, hits, options.task),
    )


def _tables(predicted: Sequence[ImageGraph], reference: Sequence[ImageGraph], task: Task) -> Tables:
    if task == "det":
        predicted, reference = (list(map(_without_relations, g)) for g in (predicted, reference))
    return tabulate(predicted, reference)


def _without_relations(graph: ImageGraph) -> ImageGraph:
    return replace(graph, subjects=[], predicates=[], objects=[], relation_scores=[])


def all_metrics(
    tables: Tables, options: Options
) -> tuple[dict[str, dict[str, RatioMetric]], StrictResult]:
    """By protocol, and `objects`; and which predictions hit in `strict`.

    Only those of the task: `det` has `objects` alone, `cls` the triplets of `strict`, by names.
    """
    if options.task == "cls":
        hits = strict(_without_boxes(tables[0]), _without_boxes(tables[1]))
        triplets = {name: hits.metrics[name] for name in TRIPLET_METRICS}
        return {"strict": triplets | {"mean_recall": hits.predicate_recall}}, hits
    seen = options.training.triplets if options.training else None
    hits = strict(*tables, seen)
    metrics = dict(hits.metrics)
    objects = {name: metrics.pop(metric) for name, metric in OBJECT_METRICS.items()}
    if options.task == "det":
        return {"objects": objects}, hits
    vocabulary = options.mapper.vocabulary if options.mapper else None
    known = _known(tables[0], vocabulary) if vocabulary else tables[0]
    predicates = vocabulary.predicates if vocabulary else None
    groups = {
        "strict": metrics,
        "sgb": sgb(known, tables[1], predicates=predicates, seen=seen),
        "r1-sgg": r1_sgg(*tables),
        "objects": objects,
    }
    return groups, hits


def _without_boxes(table: GraphTable) -> GraphTable:
    """With the same box everywhere, so that names alone decide."""
    return replace(table, boxes=np.tile([0.0, 0.0, 1.0, 1.0], (len(table.boxes), 1)))


def _answer(predictions: Predictions, references: References, image_id: str) -> PredictedImage:
    """What was predicted for an image of the references, or that nothing was."""
    if (found := predictions.images.get(image_id)) is not None:
        return found
    empty = ImageGraph(size=references.images[image_id].size)
    return PredictedImage(graph=empty, status="no_prediction")


def _check_names(references: References, vocabulary: Vocabulary) -> None:
    objects, predicates = set(vocabulary.objects), set(vocabulary.predicates)
    for image in references.images.values():
        outside = {*image.graph.names} - objects | {*image.graph.predicates} - predicates
        for name in sorted(outside):
            image.place.add("unknown_name", f"{name!r} is not in the vocabulary")


def _known(table: GraphTable, vocabulary: Vocabulary) -> GraphTable:
    """Without relations of objects outside the vocabulary: `sgb` has no number for their names."""
    known = np.isin(table.names, vocabulary.objects)[table.object_names]
    return table.with_relations(known[table.subjects] & known[table.objects])


def _average_precision(tables: Tables) -> dict[str, float | None]:
    return {name: number(value) for name, value in detection_ap(*tables).items()}


def _values(metrics: Mapping[str, RatioMetric]) -> dict[str, float | None]:
    return {name: number(metric.value) for name, metric in metrics.items()}


def _num_images(metrics: Mapping[str, RatioMetric]) -> dict[str, float | None]:
    """How many images a protocol's recall is a mean over."""
    names = ("recall@100", "ng_recall", "triplet_recall")
    recall = next(metrics[name] for name in names if name in metrics)
    return {"num_images": int((recall.denominator.toarray() > 0).sum())}


def _intervals(
    metrics: Mapping[str, Mapping[str, RatioMetric]], num_images: int
) -> dict[str, dict[str, tuple[float, float]]]:
    """By bootstrap over all images; of metrics that are defined."""
    return {
        group: {
            name: interval(values)
            for name, values in resampled(of_group, num_images).items()
            if np.isfinite(values).any()
        }
        for group, of_group in metrics.items()
    }
