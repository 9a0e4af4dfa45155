"""Recall of each predicate, and of common and rare ones.

Predicates of the references are sorted by how many relations have them, in the training split where
one is given, else in the references, then by name. The first third are `head`, the second `body`,
the rest `tail`.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from evaluation.result import PROTOCOLS, Group, PredicateRow, Protocol
from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.recall import by_name
from scene_graph.metrics.table import GraphTable

GROUPS: tuple[Group, ...] = ("head", "body", "tail")
_MEAN_RECALLS = ("mean_recall@100", "ng_mean_recall", "mean_recall")
"""In `strict` and `sgb`; in `r1-sgg`; in `strict` where the task is `cls`"""


def predicate_rows(
    predicted: GraphTable,
    reference: GraphTable,
    metrics: Mapping[Protocol, Mapping[str, RatioMetric]],
    num_training: Mapping[str, int] | None,
) -> list[PredicateRow]:
    """One row for each predicate of the references, the most frequent first.

    Args:
        predicted: All images.
        reference: All images.
        metrics: By protocol.
        num_training: Relations of the training split by predicate, if there is one.
    """
    written, annotated = _counts(predicted), _counts(reference)
    names = [name for name, count in annotated.items() if count]
    frequency = annotated if num_training is None else num_training
    names.sort(key=lambda name: (-frequency.get(name, 0), name))
    recall = {
        protocol: by_name(mean_recall(of_protocol), reference.predicate_names)
        for protocol, of_protocol in metrics.items()
    }
    return [
        PredicateRow(
            predicate=name,
            group=GROUPS[3 * rank // len(names)],
            num_training=None if num_training is None else num_training.get(name, 0),
            num_reference=annotated[name],
            num_predicted=written[name],
            recall={p: values[name] for p, values in recall.items() if name in values},
        )
        for rank, name in enumerate(names)
    ]


def mean_recall(metrics: Mapping[str, RatioMetric]) -> RatioMetric:
    """The metric of a protocol that a predicate's recall is a part of."""
    return next(metrics[name] for name in _MEAN_RECALLS if name in metrics)


def group_means(rows: Sequence[PredicateRow]) -> dict[str, dict[str, float]]:
    """The mean recall of each group's predicates, by protocol; groups that have any."""
    means: dict[str, dict[str, float]] = {}
    for group in GROUPS:
        for protocol in PROTOCOLS:
            values = [r.recall[protocol] for r in rows if r.group == group and protocol in r.recall]
            if values:
                means.setdefault(group, {})[protocol] = fmean(values)
    return means


def _counts(table: GraphTable) -> dict[str, int]:
    counts = np.bincount(table.predicates, minlength=len(table.predicate_names)).tolist()
    return dict(zip(table.predicate_names, counts, strict=True))
