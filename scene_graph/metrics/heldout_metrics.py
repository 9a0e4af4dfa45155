"""Strict scene-graph metrics on held-out images.

A *hit* is one-to-one: a predicted item claims one reference item at most, and is claimed once; the
assignment with the most hits counts. Objects hit with an equal name and IoU >= 0.5; triplets with
three equal names and both boxes IoU >= 0.5. An image that failed to parse scores 0; none is skipped
for having no predictions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scene_graph.graph import GraphColumns, SceneGraph
from scene_graph.matching import Comparison, compare, one_to_one
from scene_graph.similarity import Floats, Indices


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
    """Of the reward's optimal object assignment, over all its pairs, whatever their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """One image, for objects or triplets."""

    hits: int
    predicted: int
    reference: int


def strict_metrics(
    pairs: Sequence[tuple[SceneGraph | None, SceneGraph]],
) -> SceneGraphMetrics:
    """Score predictions against references.

    Args:
        pairs: (prediction, reference) of each image, both from `clean_graph` or `parse_completion`
            (boxes in fractions, names normalised); None where the completion did not parse.
    """
    empty = SceneGraph(objects=(), relationships=())
    c = compare(
        [GraphColumns.from_graph(prediction or empty) for prediction, _ in pairs],
        [GraphColumns.from_graph(reference) for _, reference in pairs],
        np.arange(len(pairs)),
    )
    assert c.pairs is not None
    objects = _counts(_object_hits(c), c.predicted.num_objects, c.reference.num_objects)
    hits = c.triplets.instance[c.assigned_hits]
    triplets = _counts(
        c.per_graph(c.instance_owner[hits]), c.predicted.num_triplets, c.reference.num_triplets
    )
    predicates = c.reference.predicates
    wanted = Counter(c.names[code] for code in predicates)
    found = Counter(c.names[code] for code in predicates[c.instance_triplet[hits]])
    ious = c.pairs.iou[c.pairs.matched].tolist()
    per_predicate = {name: found[name] / wanted[name] for name in sorted(wanted)}
    num_failed = sum(prediction is None for prediction, _ in pairs)
    triplet_recall, triplet_precision, triplet_f1 = _means(triplets)
    object_recall, object_precision, object_f1 = _means(objects)
    return SceneGraphMetrics(
        num_images=len(pairs),
        failure_rate=num_failed / len(pairs) if pairs else 0.0,
        triplet_recall=triplet_recall,
        triplet_precision=triplet_precision,
        triplet_f1=triplet_f1,
        mean_predicate_recall=_mean(list(per_predicate.values())),
        predicate_recall=per_predicate,
        object_recall=object_recall,
        object_precision=object_precision,
        object_f1=object_f1,
        mean_iou=_mean(ious),
    )


def _object_hits(c: Comparison) -> Floats:
    """[B] objects of equal name with IoU >= 0.5, one-to-one, as many as can be."""
    assert c.pairs is not None
    good = np.flatnonzero(c.pairs.overlap & c.pairs.same_name)
    predicted = c.pairs.predicted[good]
    owner = c.predicted.object_graph[predicted]
    hits = one_to_one(owner, predicted, c.pairs.reference[good], np.ones(len(good)))
    return c.per_graph(owner[hits])


def _counts(hits: Floats, predicted: Indices, reference: Indices) -> list[_Counts]:
    rows = zip(hits.astype(int).tolist(), predicted.tolist(), reference.tolist(), strict=True)
    return [_Counts(hits=h, predicted=p, reference=r) for h, p, r in rows]


def _means(counts: Sequence[_Counts]) -> tuple[float, float, float]:
    """Recall, precision, F1: means over the images that have something to find."""
    images = [c for c in counts if c.reference]
    recall = _mean([c.hits / c.reference for c in images])
    precision = _mean([c.hits / c.predicted if c.predicted else 0.0 for c in images])
    f1 = _mean([2 * c.hits / (c.predicted + c.reference) for c in images])
    return recall, precision, f1


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
