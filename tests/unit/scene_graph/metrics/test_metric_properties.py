"""What holds for all graphs: perfection, order, repetition, floods of guesses."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_graph.metrics.bootstrap import interval, resampled
from scene_graph.metrics.r1_sgg import r1_sgg
from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.sgb import sgb
from scene_graph.metrics.strict import strict
from scene_graph.metrics.table import ImageGraph, tabulate
from tests.metric_graphs import PAIRS, PREDICATES, graphs

Pairs = Sequence[tuple[ImageGraph, ImageGraph]]
FEW = settings(max_examples=25)
"""All metrics of all protocols are made anew in each, twice or more."""
SEEN = {("cat", "on", "mat"), ("man", "by", "man"), ("mat", "in", "cat")}


def all_metrics(pairs: Pairs) -> dict[str, RatioMetric]:
    tables = tabulate([p for p, _ in pairs], [r for _, r in pairs])
    return {
        f"{protocol} {name}": metric
        for protocol, metrics in (
            ("strict", strict(*tables, seen=SEEN).metrics),
            ("sgb", sgb(*tables, predicates=PREDICATES, seen=SEEN)),
            ("r1-sgg", r1_sgg(*tables)),
        )
        for name, metric in metrics.items()
    }


def measure(pairs: Pairs) -> dict[str, float]:
    return {name: metric.value for name, metric in all_metrics(pairs).items()}


def same(values: dict[str, float]) -> object:
    return pytest.approx(values, abs=1e-12, nan_ok=True)


@FEW
@given(st.lists(graphs(one_predicate=True), min_size=1, max_size=4))
def test_perfect_predictions_give_1(references: list[ImageGraph]) -> None:
    """A reference with two predicates for a pair cannot be found under the graph constraint."""
    pairs = [(graph, graph) for graph in references]
    present = {p for graph in references for p in graph.predicates}
    for name, value in measure(pairs).items():
        expected = 1.0
        if name.startswith("sgb") and "mean_recall" in name:
            expected = len(present) / len(PREDICATES)
        assert np.isnan(value) or value == pytest.approx(expected, abs=1e-12), name
    if present:
        values = measure(pairs)
        assert values["strict recall@20"] == values["strict triplet_precision"] == 1
        assert values["r1-sgg ng_recall"] == values["sgb recall@20"] == 1


@FEW
@given(PAIRS, st.randoms())
def test_the_order_of_images_does_not_matter(pairs: Pairs, rng: random.Random) -> None:
    shuffled = rng.sample(pairs, len(pairs))
    assert measure(shuffled) == same(measure(pairs))


def reordered(graph: ImageGraph, rng: random.Random) -> ImageGraph:
    """The same graph with its objects written in another order."""
    order = rng.sample(range(len(graph.names)), len(graph.names))
    place = {old: new for new, old in enumerate(order)}
    return replace(
        graph,
        names=[graph.names[i] for i in order],
        boxes=[c for i in order for c in graph.boxes[4 * i : 4 * i + 4]],
        subjects=[place[i] for i in graph.subjects],
        objects=[place[i] for i in graph.objects],
    )


@FEW
@given(PAIRS, st.randoms())
def test_the_order_of_objects_does_not_matter(pairs: Pairs, rng: random.Random) -> None:
    other = [(reordered(p, rng), reordered(r, rng)) for p, r in pairs]
    assert measure(other) == same(measure(pairs))


@FEW
@given(PAIRS)
def test_names_are_only_told_apart(pairs: Pairs) -> None:
    """Codes follow the alphabet: other names give other codes, and the same metrics."""
    other = {"cat": "zebra", "man": "ape", "mat": "moth"}
    renamed = [
        [replace(graph, names=[other[n] for n in graph.names]) for graph in pair] for pair in pairs
    ]
    values, before = measure([(p, r) for p, r in renamed]), measure(pairs)
    zero_shot = {name for name in values if "zero_shot" in name}  # by the training split's names
    assert {n: values[n] for n in values.keys() - zero_shot} == same(
        {n: before[n] for n in before.keys() - zero_shot}
    )


@FEW
@given(PAIRS, graphs())
def test_an_image_without_prediction_is_0_in_strict_and_skipped_in_sgb(
    pairs: Pairs, reference: ImageGraph
) -> None:
    before, after = measure(pairs), measure([*pairs, (ImageGraph(), reference)])
    counted = sum(bool(r.predicates) for _, r in pairs)
    for name in before:
        if name.startswith("sgb"):
            assert after[name] == same(before[name]), name  # type: ignore[arg-type]
    if reference.predicates and counted:
        for name in ("strict recall@20", "strict triplet_precision", "r1-sgg ng_recall"):
            assert after[name] == pytest.approx(before[name] * counted / (counted + 1))


@FEW
@given(PAIRS, st.integers(1, 3))
def test_wrong_predictions_cost_precision_and_find_nothing(pairs: Pairs, num_wrong: int) -> None:
    worse = [
        (
            replace(
                p,
                subjects=p.subjects + [0] * num_wrong,
                predicates=p.predicates + ["wrong"] * num_wrong,
                objects=p.objects + [0] * num_wrong,
            )
            if p.names
            else p,
            r,
        )
        for p, r in pairs
    ]
    before, after = measure(pairs), measure(worse)
    assert after["strict triplet_recall"] == same(before["strict triplet_recall"])  # type: ignore[arg-type]
    if before["strict triplet_precision"] > 0:
        assert after["strict triplet_precision"] < before["strict triplet_precision"]
        assert after["strict triplet_f1"] < before["strict triplet_f1"]


@FEW
@given(st.lists(graphs(one_predicate=True), min_size=1, max_size=4), st.randoms())
def test_all_predicates_for_all_pairs_do_not_help_under_the_graph_constraint(
    references: list[ImageGraph], rng: random.Random
) -> None:
    """No better than the one predicate that stands first; and precision falls."""
    floods: list[ImageGraph] = []
    choices: list[ImageGraph] = []
    for graph in references:
        every = range(len(graph.names))
        pairs = [(s, o) for s in every for o in every]
        guesses = [rng.sample(PREDICATES, len(PREDICATES)) for _ in pairs]
        for graphs_of, count in ((floods, len(PREDICATES)), (choices, 1)):
            graphs_of.append(
                replace(
                    graph,
                    subjects=[s for s, _ in pairs for _ in range(count)],
                    predicates=[p for predicates in guesses for p in predicates[:count]],
                    objects=[o for _, o in pairs for _ in range(count)],
                )
            )
    flood = measure(list(zip(floods, references, strict=True)))
    choice = measure(list(zip(choices, references, strict=True)))
    for k in (20, 50, 100):
        for name in (f"strict recall@{k}", f"strict mean_recall@{k}"):
            assert flood[name] == same(choice[name])  # type: ignore[arg-type]
    if any(graph.predicates for graph in references):
        honest = measure([(graph, graph) for graph in references])
        assert flood["strict triplet_precision"] <= 1 / len(PREDICATES)
        assert honest["strict triplet_precision"] == 1


@FEW
@given(PAIRS)
def test_a_prediction_claims_one_reference_and_is_claimed_once(pairs: Pairs) -> None:
    for p, r in pairs:
        distinct = len(set(zip(r.subjects, r.predicates, r.objects, strict=True)))
        result = strict(*tabulate([p], [r]))
        hits = int(result.predicted_relation_hits.sum())
        assert hits <= min(len(p.predicates), distinct)
        assert hits <= result.reference_relation_hits.sum()
        assert result.predicted_object_hits.sum() == result.reference_object_hits.sum()
        if distinct == len(r.predicates):
            assert hits == result.reference_relation_hits.sum()
            # To claim one is harder than to overlap it.
            found = r1_sgg(*tabulate([p], [r]))["ng_recall"].value
            assert result.metrics["triplet_recall"].value <= found or not distinct


@FEW
@given(PAIRS)
def test_recall_grows_with_k_and_without_the_constraint(pairs: Pairs) -> None:
    values = measure(pairs)
    for name, value in values.items():
        if name.endswith("@20") and not np.isnan(value):
            stem = name.removesuffix("20")
            assert value <= values[f"{stem}50"] <= values[f"{stem}100"] <= 1
    if not np.isnan(values["strict recall@100"]):
        assert values["strict ng_recall@100"] <= values["strict triplet_recall"]


@FEW
@given(PAIRS, st.data())
def test_a_weight_of_an_image_is_that_image_so_many_times(
    pairs: Pairs, data: st.DataObject
) -> None:
    """What the bootstrap rests on, in every metric of every protocol.

    But a mean over a fixed number of classes, where a draw without one of them keeps its weight.
    """
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs)))
    repeated = [pair for pair, w in zip(pairs, weights, strict=True) for _ in range(w)]
    row = np.array([weights], dtype=np.float64)
    metrics = {
        name: metric
        for name, metric in all_metrics(pairs).items()
        if metric.num_classes is None or 0 not in weights
    }
    expected = measure(repeated)
    weighted = {name: float(metric.weighted(row)[0]) for name, metric in metrics.items()}
    assert weighted == same({name: expected[name] for name in metrics})


def test_resamples_are_paired_and_their_interval_holds_the_value() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(200)
    metric = RatioMetric.mean_of_images(values, np.ones(200))
    better = RatioMetric.mean_of_images(values + 0.1, np.ones(200))
    draws = resampled({"a": metric, "b": better}, 200)
    np.testing.assert_allclose(draws["b"] - draws["a"], 0.1)
    np.testing.assert_array_equal(draws["a"], resampled({"a": metric}, 200)["a"])
    low, high = interval(draws["a"])
    error = 1.96 * values.std() / 200**0.5  # the normal approximation
    assert (low, high) == pytest.approx((metric.value - error, metric.value + error), abs=error / 5)
