"""How many answers failed, and how long they are."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from evaluation.reading.predictions import PredictedImage
from scene_graph.cleaning import Task
from scene_graph.matching import Flags
from scene_graph.metrics.duplicates import duplicate_objects, duplicate_relations
from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.table import GraphTable
from scene_graph.similarity import Indices


def answer_metrics(
    answers: Sequence[PredictedImage],
    tables: tuple[GraphTable, GraphTable],
    settings: Mapping[str, object],
    task: Task,
) -> dict[str, RatioMetric]:
    """Means over images; of tokens, over those that say how many they have; duplicates of all.

    Args:
        answers: [B]
        tables: Predicted and reference, of the same images.
        settings: How the answers were sampled, as far as that is known.
        task: Says what an image has none of.
    """
    predicted, reference = tables
    tokens = [a.num_tokens or 0 for a in answers]
    says_tokens = np.array([a.num_tokens is not None for a in answers], dtype=np.float64)
    columns: dict[str, ArrayLike | None] = {
        "failure_rate": [a.status != "ok" for a in answers],
        "relations_per_image": predicted.relations_of_image,
        "objects_per_image": predicted.objects_of_image,
        "reference_relations_per_image": reference.relations_of_image,
        "reference_objects_per_image": reference.objects_of_image,
        "tokens_per_image": tokens,
        "unconstrained_failure_rate": _unconstrained_failures(answers, settings),
    }
    everywhere = np.ones(len(answers))
    absent = {"det": "relations_per_image", "cls": "objects_per_image"}.get(task, "-")
    metrics = {
        name: RatioMetric.mean_of_images(
            np.asarray(values, dtype=np.float64), says_tokens if values is tokens else everywhere
        )
        for name, values in columns.items()
        if values is not None and not name.endswith(absent)
    }
    if task != "cls":  # whose triplets have no place
        flags = duplicate_objects(predicted)
        metrics["duplicate_objects"] = _share(flags, predicted.object_image, len(answers))
    if task == "sgg":
        flags = duplicate_relations(predicted)
        metrics["duplicate_relations"] = _share(flags, predicted.relation_image, len(answers))
    return metrics


def _share(flags: Flags, image: Indices, num_images: int) -> RatioMetric:
    """The share of flagged items among those of all images."""
    flagged, whole = (np.bincount(image, weights, num_images) for weights in (flags, None))
    return RatioMetric.of_images(flagged.astype(np.float64), whole.astype(np.float64))


def _unconstrained_failures(
    answers: Sequence[PredictedImage], settings: Mapping[str, object]
) -> list[bool] | None:
    """[B] whether the free answer failed; None where nobody says that answers were free."""
    if "constrain" not in settings and not any(a.unconstrained_status for a in answers):
        return None
    return [(a.unconstrained_status or a.status) != "ok" for a in answers]
