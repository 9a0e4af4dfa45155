"""From the rank at which each reference relation is found to recall in all its forms.

Below, `ranks` are [E] of the reference relations (`scene_graph.metrics.hits`), and `counted` says
which of them are there to be found.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from scipy.sparse import csr_array

from scene_graph.matching import Flags
from scene_graph.metrics.hits import joint_codes
from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.table import GraphTable
from scene_graph.similarity import Floats, Indices

CUTS = (20, 50, 100)
"""The K of recall@K."""
Triplet = tuple[str, str, str]
"""Names of subject, predicate and object."""


def recall(found: Flags, counted: Flags, reference: GraphTable) -> RatioMetric:
    """The mean, over images with a counted relation, of the share that is found.

    Args:
        found: [E]
        counted: [E]
        reference: E relations.
    """
    hits, wanted = (_per_image(flags, reference) for flags in (found & counted, counted))
    return share_of_images(hits, wanted, wanted > 0)


def share_of_images(part: Floats, whole: Floats, images: Flags) -> RatioMetric:
    """The mean over images of part / whole, 0 where whole is.

    Args:
        part: [B]
        whole: [B]
        images: [B] those that count.
    """
    shares = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return RatioMetric.mean_of_images(shares, images.astype(np.float64))


def pooled_recall(found: Flags, counted: Flags, reference: GraphTable) -> RatioMetric:
    """Found / counted of each predicate over all images; the mean over predicates."""
    return RatioMetric(
        numerator=_per_predicate(found & counted, reference),
        denominator=_per_predicate(counted, reference),
    )


def mean_image_recall(
    found: Flags, counted: Flags, reference: GraphTable, num_predicates: int | None = None
) -> RatioMetric:
    """For each predicate the mean over images that have it of found / counted; their mean.

    Args:
        found: [E]
        counted: [E]
        reference: E relations.
        num_predicates: What the sum is divided by; the predicates that count if None.
    """
    hits, wanted = (_per_predicate(flags, reference) for flags in (found & counted, counted))
    inverse, present = wanted.copy(), wanted.copy()
    inverse.data, present.data = 1 / wanted.data, np.ones_like(wanted.data)
    return RatioMetric(
        numerator=hits.multiply(inverse).tocsr(), denominator=present, num_classes=num_predicates
    )


def pooled(found: Flags, counted: Flags, reference: GraphTable) -> RatioMetric:
    """Found / counted over all images together."""
    hits, wanted = (_per_image(flags, reference) for flags in (found & counted, counted))
    return RatioMetric.of_images(hits, wanted)


def at_cuts(
    prefix: str,
    ranks: Indices,
    counted: Flags,
    unseen: Flags | None,
    reference: GraphTable,
    mean_recall: Callable[[Flags, Flags, GraphTable], RatioMetric],
) -> dict[str, RatioMetric]:
    """`recall@K` and `mean_recall@K`, and `zero_shot_recall@K` where `unseen` is known.

    Args:
        prefix: Before each name, such as `ng_`.
        ranks: [E] of the reference relations.
        counted: [E]
        unseen: [E] those of the counted that are zero-shot.
        reference: E relations.
        mean_recall: How the mean over predicates is taken.
    """
    metrics = {}
    for k in CUTS:
        found = ranks < k
        metrics[f"{prefix}recall@{k}"] = recall(found, counted, reference)
        metrics[f"{prefix}mean_recall@{k}"] = mean_recall(found, counted, reference)
        if unseen is not None:
            metrics[f"{prefix}zero_shot_recall@{k}"] = recall(found, unseen, reference)
    return metrics


def by_name(metric: RatioMetric, names: Sequence[str]) -> dict[str, float]:
    """A metric's ratio for each class that counts; `names` has those of all classes."""
    above, below = metric.by_class()
    rows = zip(names, above.tolist(), below.tolist(), strict=True)
    return {name: a / b for name, a, b in rows if b}


def listed(reference: GraphTable, triplets: Collection[Triplet]) -> Flags:
    """[E] relations whose names are among the triplets.

    Args:
        reference: E relations.
        triplets: A set or mapping; names normalised.
    """
    names, predicates = reference.names, reference.predicate_names
    columns = reference.triplets
    _, first, inverse = np.unique(joint_codes(*columns), return_index=True, return_inverse=True)
    distinct = zip(*(column[first].tolist() for column in columns), strict=True)
    flags = [(names[s], predicates[p], names[o]) in triplets for s, p, o in distinct]
    return np.array(flags, dtype=np.bool_)[inverse]


def distinct(reference: GraphTable) -> tuple[Flags, Indices]:
    """Relations that repeat no earlier one: same two objects, same predicate.

    Returns:
        [E] those that repeat none, and [E] which earlier one each is, or itself.
    """
    columns = reference.subjects, reference.predicates, reference.objects
    _, first, inverse = np.unique(joint_codes(*columns), return_index=True, return_inverse=True)
    original: Indices = first[inverse]
    return original == np.arange(len(original)), original


def _per_image(flags: Flags, table: GraphTable) -> Floats:
    return np.bincount(table.relation_image[flags], minlength=table.num_images).astype(np.float64)


def _per_predicate(flags: Flags, table: GraphTable) -> csr_array:
    """[B, P] counts."""
    shape = table.num_images, len(table.predicate_names)
    where = table.relation_image[flags], table.predicates[flags]
    counts = csr_array((np.ones(len(where[0])), where), shape=shape)
    counts.sum_duplicates()
    return counts
