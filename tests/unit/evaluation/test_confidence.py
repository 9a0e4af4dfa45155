"""Scores of predictions: calibration, risk and coverage."""

from itertools import permutations

import numpy as np
import pytest

from evaluation.scoring.confidence import confidence, confidences
from scene_graph.metrics.strict import strict
from scene_graph.metrics.table import ImageGraph, tabulate


def test_scores_that_are_the_truth_are_calibrated_within_two_per_cent() -> None:
    rng = np.random.default_rng(0)
    scores = rng.beta(2, 1, 20_000)
    found = confidence(scores, rng.random(scores.size) < scores)
    assert found.calibration_error is not None
    assert found.calibration_error < 0.02
    assert found.num_predicted == sum(b.num_predicted for b in found.bins) == 20_000
    assert [b.score for b in found.bins] == sorted(b.score for b in found.bins)
    # They rank well, too: E[wrong | best by score] is below that of all.
    assert found.risk_coverage_area < 1 - found.share_right


def test_scores_that_promise_too_much_are_off_by_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.6, 0.8, 20_000)
    found = confidence(scores, rng.random(scores.size) < scores - 0.3)
    assert found.calibration_error == pytest.approx(0.3, abs=0.01)


def test_equal_scores_are_the_mean_over_their_orders() -> None:
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    right = np.array([True, True, False, False, True])
    areas = []
    for order in permutations(range(1, 4)):
        wrong = ~right[[0, *order, 4]]
        areas.append((wrong.cumsum() / np.arange(1, 6)).mean())
    for order in permutations(range(5)):
        found = confidence(scores[[*order]], right[[*order]])
        assert found.risk_coverage_area == pytest.approx(np.mean(areas))
        assert found.risk_at_coverage[-1] == pytest.approx((1.0, 0.4))


def test_scores_that_are_no_shares_have_a_ranking_and_no_calibration() -> None:
    found = confidence(np.array([12.0, -3.0]), np.array([True, False]))
    assert found.calibration_error is None
    assert not found.bins
    assert found.risk_coverage_area == pytest.approx(0.25)


@pytest.mark.parametrize("score", [-0.5, 1.5])
def test_a_product_of_scores_that_are_no_shares_is_none(score: float) -> None:
    graph = ImageGraph(
        names=["man", "horse"],
        boxes=[0, 0, 5, 9, 0, 3, 9, 9],
        scores=[score, score],
        subjects=[0],
        predicates=["on"],
        objects=[1],
        relation_scores=[0.4],
    )
    predicted, reference = tabulate([graph], [graph])
    found = confidences(predicted, strict(predicted, reference), "sgg")
    assert [found[kind].calibration_error for kind in ("triplets", "objects")] == [None, None]
    assert list(confidences(predicted, strict(predicted, reference), "cls")) == ["triplets"]
