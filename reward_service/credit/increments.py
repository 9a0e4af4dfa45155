"""What each element of a completion adds to its reward.

With G_k the graph after the k-th element and R the terms that are about graphs, weighed, the
element's increment is R(G_k) - R(G_{k-1}). All increments together are R(G) - R(G_0). The rest of
the total is earned at the end: terms about the text as a whole (`format`, `length_penalty`, those
that a user wrote), and what becomes of the graph by what stands behind the last element.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from reward_service.credit.prefixes import PrefixBatch
from reward_service.terms import TERMS, ComparedBatch
from scene_graph.notations.elements import Elements
from services.schemas.rewards import Credit
from services.schemas.rubrics import Rubric


def credits_of(
    batch: ComparedBatch,
    elements: Sequence[Elements | None],
    weights: Mapping[str, float],
    rubric: Rubric,
) -> list[Credit | None]:
    """The increments of B completions.

    Args:
        batch: Of the graphs `Elements.columns`.
        elements: [B] None for those that nobody asks about.
        weights: Of the terms.
        rubric: Whose terms they are.
    """
    prefixes = PrefixBatch.of(batch, np.array([each is not None for each in elements]))
    total = np.zeros(len(elements) * prefixes.width)
    for name, weight in weights.items():
        if TERMS[name].by_element:
            total += weight * TERMS[name].function(prefixes, rubric)
    increments = np.diff(total.reshape(len(elements), -1), axis=1)
    return [
        each and _credit(each, row[:count])
        for each, row, count in zip(
            elements, increments.tolist(), prefixes.num_elements.tolist(), strict=True
        )
    ]


def _credit(elements: Elements, increments: Sequence[float]) -> Credit:
    """What was dropped of a graph adds nothing."""
    of_all = [0.0] * len(elements.spans)
    for place, increment in zip(elements.kept, increments, strict=True):
        of_all[place] = increment
    return Credit(num_objects=elements.num_objects, spans=elements.spans, increments=of_all)
