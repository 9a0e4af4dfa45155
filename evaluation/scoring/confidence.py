"""Whether the scores of predictions say which of them are right.

A predicted triplet or object is right where it hits in `strict`; its score is right where so many
of those with that score are. For example, of ten triplets with the score 0.7 seven should hit.
Equal scores are taken as one: every number here is the mean over their orders.
"""

from collections.abc import Sequence

import numpy as np

from evaluation.result import Confidence, ScoreBin
from scene_graph.cleaning import Task
from scene_graph.matching import Flags
from scene_graph.metrics.hits import scores as triplet_scores
from scene_graph.metrics.strict import StrictResult
from scene_graph.metrics.table import GraphTable
from scene_graph.similarity import Floats

NUM_BINS = 15
"""As many predictions in each (Nguyen and O'Connor 2015): with bins of equal width most are empty,
for most scores of a model are near 1."""
NUM_COVERAGES = 50


def confidences(predicted: GraphTable, hits: StrictResult, task: Task) -> dict[str, Confidence]:
    """`triplets` and `objects`, each where it has scores; for the task `cls` no objects.

    Args:
        predicted: Of all images.
        hits: What of it hits.
        task: What is evaluated.
    """
    scores, factors = triplet_scores(predicted), (predicted.scores, predicted.relation_scores)
    found = {}
    if len(scores) and (predicted.objects_have_scores or predicted.relations_have_scores):
        found["triplets"] = confidence(scores, hits.predicted_relation_hits, factors)
    if task != "cls" and predicted.objects_have_scores:
        found["objects"] = confidence(predicted.scores, hits.predicted_object_hits)
    return found


def confidence(scores: Floats, right: Flags, factors: Sequence[Floats] = ()) -> Confidence:
    """How far N predictions of some scores are right.

    Args:
        scores: [N], N > 0.
        right: [N]
        factors: What the scores are products of; -5 times -0.1 is in 0..1, and no share.
    """
    order = np.argsort(-scores, kind="stable")
    scores, expected = scores[order], _mean_of_equals(scores[order], right[order])
    counts = np.arange(1, len(scores) + 1)
    risks = 1 - expected.cumsum() / counts
    are_shares = all(np.all((part >= 0) & (part <= 1)) for part in (scores, *factors))
    bins = _bins(scores, expected) if are_shares else []
    places = np.unique(np.ceil(np.linspace(0, 1, NUM_COVERAGES + 1)[1:] * len(scores)).astype(int))
    return Confidence(
        num_predicted=len(scores),
        share_right=float(right.mean()),
        calibration_error=sum(b.num_predicted * abs(b.score - b.share_right) for b in bins)
        / len(scores)
        if bins
        else None,
        risk_coverage_area=float(risks.mean()),
        bins=bins,
        risk_at_coverage=[(k / len(scores), float(risks[k - 1])) for k in places.tolist()],
    )


def _mean_of_equals(scores: Floats, right: Flags) -> Floats:
    """[N] the share that is right among those of the same score; scores fall."""
    _, group = np.unique(-scores, return_inverse=True)
    means: Floats = np.bincount(group, right) / np.bincount(group)
    return means[group]


def _bins(scores: Floats, expected: Floats) -> list[ScoreBin]:
    parts = np.array_split(np.arange(len(scores)), min(NUM_BINS, len(scores)))
    return [
        ScoreBin(
            num_predicted=len(part),
            score=float(scores[part].mean()),
            share_right=float(expected[part].mean()),
        )
        for part in reversed(parts)
    ]
