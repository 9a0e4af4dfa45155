"""Reward terms: each maps a batch of compared completions to values in 0..1.

To add a term that ships, write a function here with `@_term`: name, tasks and formula stand above
it, for scoring, the catalogue and the rubric's version alike. It gets the batch and the rubric, and
returns a value for each of the B completions. R is the reference, P the prediction, "matched" means
by `scene_graph.matching`, sim is the rubric's similarity of two names. A term over an empty
reference list is 0 for every completion: with nothing to find there is nothing to tell good from
bad.

The terms that `r1-*` rubrics use are R1-SGG's (arXiv 2504.13617) as the paper means them.
Deviations from its code: predictions and references are normalised alike, inverted boxes are
dropped, several predicates of one pair all count, a dangling id costs its triplet only, and
`format` does not raise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scene_graph.graph import GraphColumns
from scene_graph.matching import Comparison, Flags, ObjectPairs
from scene_graph.similarity import Floats, Indices
from services.schemas.rewards import Task
from services.schemas.rubrics import Rubric

ALL_TASKS: frozenset[Task] = frozenset({"sgg", "det", "cls"})
WITH_BOXES: frozenset[Task] = frozenset({"sgg", "det"})
WITH_TRIPLETS: frozenset[Task] = frozenset({"sgg", "cls"})
SGG: frozenset[Task] = frozenset({"sgg"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedBatch:
    """B completions that parsed, with one comparison for all terms."""

    task: Task
    comparison: Comparison
    tagged: Flags
    """[B] the tags that the prompt asked for are there, and nothing else"""
    clean: Flags
    """[B] nothing was dropped"""
    num_characters: Indices
    """[B]"""
    num_tokens: Indices
    """[B] zeros where the request has none"""
    predicted: Sequence[GraphColumns]
    """[B] the graphs themselves, for terms that a user writes"""
    references: Sequence[GraphColumns]
    """[G] their references; `comparison.group` says whose is which"""
    group_ids: Sequence[str]
    """[G] for errors"""

    @property
    def pairs(self) -> ObjectPairs:
        """Pairs of objects; only tasks with boxes have them."""
        assert self.comparison.pairs is not None
        return self.comparison.pairs

    @property
    def matched(self) -> Indices:
        """[M] the pairs of objects that are matched."""
        return self.pairs.matched

    @property
    def num_objects(self) -> Indices:
        """[B] predicted objects."""
        return self.comparison.predicted.num_objects

    @property
    def num_reference_objects(self) -> Indices:
        """[B] objects of each completion's reference."""
        return self.comparison.reference.num_objects[self.comparison.group]

    @property
    def num_reference_triplets(self) -> Indices:
        """[B] triplets of each completion's reference."""
        return self.comparison.reference.num_triplets[self.comparison.group]

    @property
    def num_annotated_triplets(self) -> Floats:
        """[B] predicted triplets that are `Comparison.annotated`."""
        return self.comparison.per_graph(
            self.comparison.predicted.triplet_graph, self.comparison.annotated
        )

    def sum_matched(self, values: Floats | Flags) -> Floats:
        """[B] sums of [M] values of the matched pairs."""
        predicted = self.pairs.predicted[self.matched]
        return self.comparison.per_graph(self.comparison.predicted.object_graph[predicted], values)

    def sum_best(self, which: Flags, weights: Floats | None = None) -> Floats:
        """[B] sums over reference triplets of the greatest similarity of one of their pairs.

        Args:
            which: [K] the triplet pairs that count.
            weights: [I] of the instances of reference triplets (as one completion is held against
                them), if not 1.
        """
        triplets = self.comparison.triplets
        best = np.zeros(len(self.comparison.instance_owner))
        np.maximum.at(best, triplets.instance[which], triplets.similarity[which])
        values = best if weights is None else weights * best
        return self.comparison.per_graph(self.comparison.instance_owner, values)

    def sum_instances(self, weights: Floats) -> Floats:
        """[B] sums of [I] weights of each completion's instances of reference triplets."""
        return self.comparison.per_graph(self.comparison.instance_owner, weights)

    def sum_assigned(self) -> Floats:
        """[B] the greatest sum of similarity over one-to-one pairs of triplets that overlap."""
        triplets, pairs = self.comparison.triplets, self.comparison.assigned
        return self.comparison.per_graph(triplets.owner[pairs], triplets.similarity[pairs])

    def sum_assigned_hits(self) -> Floats:
        """[B] the same over pairs of equal names, as many as can be."""
        triplets, pairs = self.comparison.triplets, self.comparison.assigned_hits
        return self.comparison.per_graph(triplets.owner[pairs], triplets.similarity[pairs])


TermFunction = Callable[[ComparedBatch, Rubric], Floats]
"""[B] values of a batch's completions"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A named part of a reward."""

    formula: str
    """Says what it computes; part of every rubric's version."""
    function: TermFunction
    tasks: frozenset[Task]
    """Elsewhere it is left out of breakdown and total."""
    by_element: bool = False
    """Whether it is made of the methods of `ComparedBatch`, so that it is known of the graph after
    each element (`reward_service.credit`); else it is about a text as a whole."""


_TERMS: dict[str, Term] = {}
TERMS: Mapping[str, Term] = _TERMS
"""By name, in the order in which they stand here"""


def add_term(name: str, term: Term) -> None:
    """List a term that does not stand here (`reward_service.own_terms`)."""
    _TERMS[name] = term


def _term(
    name: str, tasks: frozenset[Task], formula: str, *, by_element: bool = True
) -> Callable[[TermFunction], TermFunction]:
    """List the function below as the term of this name."""

    def listed(function: TermFunction) -> TermFunction:
        _TERMS[name] = Term(formula=formula, function=function, tasks=tasks, by_element=by_element)
        return function

    return listed


@_term(
    "format",
    ALL_TASKS,
    "1 if the whole text is <answer>...</answer> (after <think>...</think>, where the "
    "prompt asked for it), nothing was dropped and the graph is not empty; else 0, or 0.5 with "
    "format_partial_credit for a graph without the tags",
    by_element=False,
)
def _format(batch: ComparedBatch, rubric: Rubric) -> Floats:
    predicted = batch.comparison.predicted
    filled = (predicted.num_triplets if batch.task == "cls" else predicted.num_objects) > 0
    untagged = 0.5 if rubric.format_partial_credit else 0.0
    return np.where(batch.clean & filled, np.where(batch.tagged, 1.0, untagged), 0.0)


@_term("node_category", WITH_BOXES, "sum over matched pairs of sim / |R objects|")
def _node_category(batch: ComparedBatch, _: Rubric) -> Floats:
    similarity = batch.pairs.similarity[batch.matched]
    return share(batch.sum_matched(similarity), batch.num_reference_objects)


@_term("node_box", WITH_BOXES, "sum over matched pairs of (2 IoU + 5 exp(-L1)) / 7 / |R objects|")
def _node_box(batch: ComparedBatch, _: Rubric) -> Floats:
    matched = batch.matched
    values = (2 * batch.pairs.iou[matched] + 5 * np.exp(-batch.pairs.l1[matched])) / 7
    return share(batch.sum_matched(values), batch.num_reference_objects)


@_term(
    "edge",
    WITH_TRIPLETS,
    "sum over R triplets with matched subject and object of sim(subject) sim(object) "
    "max over predicates predicted between the matched pair of sim(predicate) / |R triplets|; "
    "for cls: greatest sum over one-to-one pairs of triplets of the product of the three sims",
)
def _edge(batch: ComparedBatch, _: Rubric) -> Floats:
    """Names of triplets between matched objects; for `cls` nothing is matched."""
    if batch.task == "cls":
        return share(batch.sum_assigned(), batch.num_reference_triplets)
    matched = batch.comparison.triplets.matched
    return share(batch.sum_best(matched), batch.num_reference_triplets)


@_term(
    "edge_hard",
    WITH_TRIPLETS,
    "share of R triplets for which a P triplet has the three equal names and both "
    "boxes IoU >= 0.5; for cls: one-to-one, names only",
)
def _edge_hard(batch: ComparedBatch, _: Rubric) -> Floats:
    if batch.task == "cls":
        return share(batch.sum_assigned_hits(), batch.num_reference_triplets)
    return share(batch.sum_best(_hits(batch)), batch.num_reference_triplets)


@_term(
    "edge_hard_relaxed",
    SGG,
    "sum over R triplets of the best product of the three sims among P triplets with "
    "both boxes IoU >= 0.5 / |R triplets|",
)
def _edge_hard_relaxed(batch: ComparedBatch, _: Rubric) -> Floats:
    overlap = batch.comparison.triplets.overlap
    return share(batch.sum_best(overlap), batch.num_reference_triplets)


@_term(
    "triplet_f1",
    WITH_TRIPLETS,
    "F_beta of S / |P triplets whose two boxes have IoU >= 0.5 with an R object| and "
    "S / |R triplets|; S is the greatest sum over one-to-one pairs of triplets with both boxes "
    "IoU >= 0.5 of the product of the three sims (for cls: without boxes, all P triplets)",
)
def _triplet_f1(batch: ComparedBatch, rubric: Rubric) -> Floats:
    """F_beta of soft precision and recall under a one-to-one assignment of triplets.

    Annotations are incomplete, so a triplet whose subject or object overlaps no reference object is
    not held against the prediction.
    """
    total = batch.sum_assigned()
    precision = share(total, batch.num_annotated_triplets)
    recall = share(total, batch.num_reference_triplets)
    square = rubric.beta**2
    return share((1 + square) * precision * recall, square * precision + recall)


@_term(
    "object_precision", WITH_BOXES, "matched pairs with an equal name and IoU >= 0.5 / |P objects|"
)
def _object_precision(batch: ComparedBatch, _: Rubric) -> Floats:
    matched = batch.matched
    good = batch.pairs.same_name[matched] & batch.pairs.overlap[matched]
    return share(batch.sum_matched(good), batch.num_objects)


@_term(
    "predicate_balanced", SGG, "edge_hard with every R triplet weighted by 1 / predicate_frequency"
)
def _predicate_balanced(batch: ComparedBatch, rubric: Rubric) -> Floats:
    """A predicate that the table does not have counts like the rarest that it has."""
    table = rubric.frequencies()
    rarest = min(table.values())
    weight = np.array([1.0 / table.get(name, rarest) for name in batch.comparison.names])
    c = batch.comparison
    weights = weight[c.reference.predicates[c.instance_triplet]]
    return share(batch.sum_best(_hits(batch), weights), batch.sum_instances(weights))


@_term(
    "length_penalty",
    ALL_TASKS,
    "1 up to length.start, falling linearly to 0 at length.end",
    by_element=False,
)
def _length_penalty(batch: ComparedBatch, rubric: Rubric) -> Floats:
    """One minus DAPO's soft overlong punishment (arXiv 2503.14476, section 3.4)."""
    assert rubric.length is not None
    limits = rubric.length
    lengths = batch.num_tokens if limits.unit == "tokens" else batch.num_characters
    return np.clip((limits.end - lengths) / (limits.end - limits.start), 0.0, 1.0)


def share(total: Floats, count: Floats | Indices) -> Floats:
    """[B] total / count, 0 where the count is 0; a sum of ones may round above its count."""
    shares = np.zeros(len(total))
    np.divide(total, count, out=shares, where=count > 0)
    return np.minimum(shares, 1.0, out=shares)


def _hits(batch: ComparedBatch) -> Flags:
    """[K] pairs of triplets that hit: equal names have similarity 1."""
    triplets = batch.comparison.triplets
    flags: Flags = triplets.same_names & triplets.overlap
    return flags
