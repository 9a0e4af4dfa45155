"""The headline protocol: every image counts, and one prediction claims one reference.

A hit has equal names and IoU >= 0.5 (both boxes of a triplet); hits are one-to-one, and as many as
can be. An image with nothing predicted scores 0. A reference relation that repeats another (same
two objects, same predicate) is not there a second time; a predicted one that does is a prediction
like any other and costs precision.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from scene_graph.matching import Flags
from scene_graph.metrics.hits import (
    NEVER,
    Pairs,
    assign_by_rank,
    first_of_each_pair,
    flags_at,
    found_by_any,
    object_pairs,
    ranking,
    triplet_pairs,
)
from scene_graph.metrics.mean_iou import mean_iou
from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.recall import (
    Triplet,
    at_cuts,
    distinct,
    listed,
    pooled_recall,
    share_of_images,
)
from scene_graph.metrics.table import GraphTable
from scene_graph.similarity import Floats, Indices


@dataclass(frozen=True, slots=True, kw_only=True)
class StrictResult:
    """What hits, among E predicted and R reference relations, O and Q objects."""

    metrics: dict[str, RatioMetric]
    """`recall@K`, `mean_recall@K`, with `ng_` without the graph constraint, K = 20, 50, 100; the
    same as `zero_shot_recall@K` if the training split's triplets are known; `triplet_recall`,
    `triplet_precision`, `triplet_f1`, `object_recall`, …, `mean_iou`"""
    predicate_recall: RatioMetric
    """Mean recall with every prediction counted: no graph constraint, no K"""
    predicted_relation_hits: Flags
    """[E] of the one assignment with every prediction counted, as all that follow"""
    reference_relation_hits: Flags
    """[R] a repeated relation as the one that it repeats"""
    predicted_object_hits: Flags
    """[O]"""
    reference_object_hits: Flags
    """[Q]"""

    def by_image(self, name: str) -> Floats:
        """[B] a metric that is a mean over images; nan where there is nothing to find."""
        metric = self.metrics[name]
        counts = metric.denominator.toarray()[:, 0] > 0
        return np.where(counts, metric.numerator.toarray()[:, 0], np.nan)


def strict(
    predicted: GraphTable, reference: GraphTable, seen: Collection[Triplet] | None = None
) -> StrictResult:
    """All metrics of the protocol.

    Args:
        predicted: From `tabulate`, like `reference`.
        reference: The same images.
        seen: A set of the triplets of names in the training split; no zero-shot recall if None.
    """
    counted, original = distinct(reference)
    pairs = triplet_pairs(predicted, reference)
    pairs = pairs.kept(counted[pairs.reference])
    written = ranking(predicted)
    constrained = ranking(predicted, first_of_each_pair(predicted))
    hits = assign_by_rank(pairs, written)
    best = assign_by_rank(pairs.kept(constrained[pairs.predicted] < NEVER), constrained)
    unseen = None if seen is None else counted & ~listed(reference, seen)
    relations = counted, unseen, reference
    objects = assign_by_rank(object_pairs(predicted, reference), np.arange(len(predicted.boxes)))
    num_counted = np.bincount(reference.relation_image[counted], minlength=reference.num_images)
    num_objects = reference.objects_of_image
    metrics = {
        **at_cuts("", found_by_any(best, constrained, len(counted)), *relations, pooled_recall),
        **at_cuts("ng_", found_by_any(hits, written, len(counted)), *relations, pooled_recall),
        **_shares("triplet", hits, predicted.relations_of_image, num_counted),
        **_shares("object", objects, predicted.objects_of_image, num_objects),
        "mean_iou": mean_iou(predicted, reference),
    }
    found = flags_at(hits.reference, len(counted))
    return StrictResult(
        metrics=metrics,
        predicate_recall=pooled_recall(found, counted, reference),
        predicted_relation_hits=flags_at(hits.predicted, len(written)),
        reference_relation_hits=found[original],
        predicted_object_hits=flags_at(objects.predicted, len(predicted.object_image)),
        reference_object_hits=flags_at(objects.reference, len(reference.object_image)),
    )


def _shares(
    name: str, hits: Pairs, num_predicted: Indices, num_reference: Indices
) -> dict[str, RatioMetric]:
    """Recall, precision and F1: means over the images that have something to find."""
    found = np.bincount(hits.image, minlength=len(num_reference)).astype(np.float64)
    images = num_reference > 0

    def mean(part: Floats, whole: Indices) -> RatioMetric:
        return share_of_images(part, whole.astype(np.float64), images)

    return {
        f"{name}_recall": mean(found, num_reference),
        f"{name}_precision": mean(found, num_predicted),
        f"{name}_f1": mean(2 * found, num_predicted + num_reference),
    }
