"""How many answers failed, and how long they are."""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.reading.predictions import PredictedImage
from scene_graph.cleaning import Task
from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.table import GraphTable


def answer_metrics(
    answers: Sequence[PredictedImage],
    tables: tuple[GraphTable, GraphTable],
    settings: Mapping[str, object],
    task: Task,
) -> dict[str, RatioMetric]:
    """Means over all images; of tokens, over those that say how many they have.

    Args:
        answers: [B]
        tables: Predicted and reference, of the same images.
        settings: How the answers were sampled, as far as that is known.
        task: Says what an image has none of.
    """
    predicted, reference = tables
    tokens = np.array([a.num_tokens or 0 for a in answers], dtype=np.float64)
    says_tokens = np.array([a.num_tokens is not None for a in answers], dtype=np.float64)
    failed = np.array([a.status != "ok" for a in answers], dtype=np.float64)
    everywhere = np.ones(len(answers))
    mean = RatioMetric.mean_of_images
    metrics = {
        "failure_rate": mean(failed, everywhere),
        "relations_per_image": mean(predicted.relations_of_image.astype(float), everywhere),
        "objects_per_image": mean(predicted.objects_of_image.astype(float), everywhere),
        "reference_relations_per_image": mean(
            reference.relations_of_image.astype(float), everywhere
        ),
        "reference_objects_per_image": mean(reference.objects_of_image.astype(float), everywhere),
        "tokens_per_image": mean(tokens, says_tokens),
    }
    free = _unconstrained_failures(answers, settings)
    if free is not None:
        metrics["unconstrained_failure_rate"] = mean(np.array(free, dtype=np.float64), everywhere)
    absent = {"det": "relations_per_image", "cls": "objects_per_image"}.get(task)
    return {n: metric for n, metric in metrics.items() if absent is None or not n.endswith(absent)}


def _unconstrained_failures(
    answers: Sequence[PredictedImage], settings: Mapping[str, object]
) -> list[bool] | None:
    """[B] whether the free answer failed; None where nobody says that answers were free."""
    if "constrain" not in settings and not any(a.unconstrained_status for a in answers):
        return None
    return [(a.unconstrained_status or a.status) != "ok" for a in answers]
