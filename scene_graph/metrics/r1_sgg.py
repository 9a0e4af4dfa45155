"""Recall as the loops of R1-SGG's evaluation count it (arXiv 2504.13617, `src/vg150_eval.py`).

Every reference relation, a repeated one each time, is found if any predicted relation with equal
names has both boxes at IoU >= 0.5, without the +1 pixel. No graph constraint, no first K, and one
prediction may find many. An image without prediction scores 0. There, a predicate's recall is
rounded to four digits before the mean over predicates; here it is not.
"""

import numpy as np

from scene_graph.metrics.hits import flags_at, triplet_pairs
from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.recall import mean_image_recall, pooled, pooled_recall, recall
from scene_graph.metrics.table import GraphTable


def r1_sgg(predicted: GraphTable, reference: GraphTable) -> dict[str, RatioMetric]:
    """`ng_recall` and `ng_mean_recall`, means over images, and both `_pooled` over all images.

    Args:
        predicted: From `tabulate`, like `reference`.
        reference: The same images.
    """
    counted = np.ones(len(reference.predicates), dtype=np.bool_)
    found = flags_at(triplet_pairs(predicted, reference).reference, len(counted))
    return {
        "ng_recall": recall(found, counted, reference),
        "ng_recall_pooled": pooled(found, counted, reference),
        "ng_mean_recall": mean_image_recall(found, counted, reference),
        "ng_mean_recall_pooled": pooled_recall(found, counted, reference),
    }
