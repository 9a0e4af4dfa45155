"""Reward terms: each maps one compared completion to a value in 0..1.

R is the reference, "matched" means by `scene_graph.matching`, sim is the similarity of two names: 1
if equal after normalising, else 0. A term over an empty reference list is 0 for every completion:
with nothing to find there is nothing to tell good from bad.

The terms are R1-SGG's (arXiv 2504.13617) as the paper means them. Deviations from its code:
predictions and references are normalised alike, inverted boxes are dropped, several predicates of
one pair all count, one triplet claims one reference triplet, a dangling id costs its triplet only,
and `format` does not raise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from scene_graph.matching import GraphArrays, Indices, ObjectMatching, exact_similarity
from scene_graph.parsing import ParsedCompletion


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One parse and one matching of a completion: all that any term reads."""

    parsed: ParsedCompletion
    """With status `ok`."""
    require_thinking: bool
    predicted: GraphArrays
    reference: GraphArrays
    matching: ObjectMatching
    hit_triplets: Indices
    """[H] reference triplets that a predicted triplet of their own hits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A named part of a reward."""

    formula: str
    """Says what it computes; part of every rubric's version."""
    function: Callable[[Comparison], float]


def format_term(c: Comparison) -> float:
    """1 for a complete, well-formed, non-empty answer with its tags, else 0."""
    parsed = c.parsed
    thinking = parsed.has_think_tags or not c.require_thinking
    well_formed = parsed.has_answer_tags and thinking and not parsed.dropped
    return float(well_formed and bool(parsed.graph.objects))


def node_category(c: Comparison) -> float:
    """Sum of sim over matched pairs / |R objects|."""
    m = c.matching
    return _share(m.similarity[m.predicted, m.reference].sum(), len(c.reference.categories))


def node_box(c: Comparison) -> float:
    """Sum of (2 IoU + 5 exp(-L1)) / 7 over matched pairs / |R objects|."""
    m = c.matching
    iou, l1 = m.iou[m.predicted, m.reference], m.l1[m.predicted, m.reference]
    return _share(((2 * iou + 5 * np.exp(-l1)) / 7).sum(), len(c.reference.categories))


def edge(c: Comparison) -> float:
    """Names of triplets between matched objects.

    Sum over reference triplets with matched subject and object of sim(subject) * sim(object) * the
    best sim of a predicate predicted between the matched pair / |R triplets|.
    """
    m, predicted, reference = c.matching, c.predicted, c.reference
    if not predicted.predicates or not reference.predicates:
        return 0.0
    partner = np.full(len(reference.categories), -1, dtype=np.int64)
    partner[m.reference] = m.predicted
    name_similarity = np.zeros(len(reference.categories))
    name_similarity[m.reference] = m.similarity[m.predicted, m.reference]
    subjects, objects = partner[reference.subjects], partner[reference.objects]
    # An unmatched object has partner -1, which is no predicted index: its triplets get nothing.
    same_pair = (predicted.subjects[:, None] == subjects) & (predicted.objects[:, None] == objects)
    predicates = exact_similarity(predicted.predicates, reference.predicates)
    best = np.where(same_pair, predicates, 0.0).max(axis=0)
    ends = name_similarity[reference.subjects] * name_similarity[reference.objects]
    return _share((ends * best).sum(), len(reference.predicates))


def edge_hard(c: Comparison) -> float:
    """Share of reference triplets that a predicted triplet hits: equal names, both IoU >= 0.5.

    One-to-one: a predicted triplet claims one reference triplet, where the published code lets it
    claim all with equal names whose boxes overlap.
    """
    return _share(len(c.hit_triplets), len(c.reference.predicates))


def _share(total: float, count: int) -> float:
    return min(float(total) / count, 1.0) if count else 0.0  # a sum of ones may round above count


TERMS: Mapping[str, Term] = {
    "format": Term(
        formula="1 if the whole text is <answer>...</answer> (after <think>...</think>, where the "
        "prompt asked for it), nothing was dropped and the graph has objects; else 0",
        function=format_term,
    ),
    "node_category": Term(
        formula="sum over matched pairs of sim / |R objects|", function=node_category
    ),
    "node_box": Term(
        formula="sum over matched pairs of (2 IoU + 5 exp(-L1)) / 7 / |R objects|",
        function=node_box,
    ),
    "edge": Term(
        formula="sum over R triplets with matched subject and object of sim(subject) sim(object) "
        "max over predicates predicted between the matched pair of sim(predicate) / |R triplets|",
        function=edge,
    ),
    "edge_hard": Term(
        formula="share of R triplets for which a predicted triplet has the three equal names and "
        "both boxes IoU >= 0.5; a predicted triplet counts for one R triplet",
        function=edge_hard,
    ),
}
