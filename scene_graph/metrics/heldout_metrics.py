"""The strict protocol's numbers for a run's summary."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from scene_graph.graph import SceneGraph
from scene_graph.metrics.bootstrap import interval, resampled
from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.recall import by_name
from scene_graph.metrics.strict import StrictResult, strict
from scene_graph.metrics.table import ImageGraph, tabulate


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneGraphMetrics:
    """All in 0..1. Recall, precision and F1 are means over images; an empty mean is 0."""

    num_images: int
    failure_rate: float
    """Share of images without a parsable graph."""
    triplet_recall: float
    """Over images with at least one reference triplet, like precision and F1."""
    triplet_precision: float
    """0 for an image without predicted triplets."""
    triplet_f1: float
    """2·hits / (predicted + reference) of each image."""
    mean_predicate_recall: float
    """Hits over reference triplets, pooled for each predicate, then the mean over predicates."""
    predicate_recall: dict[str, float]
    object_recall: float
    """Over images with at least one reference object, like precision and F1."""
    object_precision: float
    object_f1: float
    mean_iou: float
    """Over all pairs of the reward's optimal object assignment, whatever their names."""
    intervals: dict[str, tuple[float, float]]
    """95 % by bootstrap over images, of triplet recall and F1, mean predicate recall and object F1,
    as far as they are defined."""


def strict_metrics(
    pairs: Sequence[tuple[SceneGraph | None, SceneGraph]],
) -> SceneGraphMetrics:
    """Score predictions against references.

    Args:
        pairs: (prediction, reference) of each image, both cleaned by
            `scene_graph.cleaning` (boxes in fractions, names normalised); None where the completion
            did not parse.
    """
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    predicted, reference = tabulate(
        [ImageGraph() if graph is None else image_graph(graph) for graph in predictions],
        [image_graph(graph) for graph in references],
    )
    result = strict(predicted, reference)
    same = (field.name for field in fields(SceneGraphMetrics) if field.name in result.metrics)
    return SceneGraphMetrics(
        num_images=len(pairs),
        failure_rate=predictions.count(None) / len(pairs) if pairs else 0.0,
        mean_predicate_recall=_or_zero(result.predicate_recall),
        predicate_recall=by_name(result.predicate_recall, reference.predicate_names),
        intervals=_intervals(result, len(pairs)),
        **{name: _or_zero(result.metrics[name]) for name in same},
    )


def image_graph(graph: SceneGraph) -> ImageGraph:
    """A cleaned graph as metrics read it: boxes in fractions, names normalised."""
    index = {item.id: i for i, item in enumerate(graph.objects)}
    return ImageGraph(
        names=[item.category for item in graph.objects],
        boxes=[c for item in graph.objects for c in item.bbox],
        subjects=[index[edge.subject] for edge in graph.relationships],
        predicates=[edge.predicate for edge in graph.relationships],
        objects=[index[edge.object] for edge in graph.relationships],
    )


def _intervals(result: StrictResult, num_images: int) -> dict[str, tuple[float, float]]:
    names = ("triplet_recall", "triplet_f1", "object_f1")
    metrics = {name: result.metrics[name] for name in names}
    metrics["mean_predicate_recall"] = result.predicate_recall
    draws = resampled(metrics, num_images) if num_images else {}
    return {name: interval(values) for name, values in draws.items() if np.isfinite(values).any()}


def _or_zero(metric: RatioMetric) -> float:
    return float(np.nan_to_num(metric.value))
