"""The conventions of published tables on images whose hits are counted by hand."""

import numpy as np
import pytest

from scene_graph.metrics.r1_sgg import r1_sgg
from scene_graph.metrics.recall import by_name
from scene_graph.metrics.sgb import sgb
from scene_graph.metrics.table import GraphTable, ImageGraph, tabulate
from tests.metric_graphs import Box, image, values

LEFT, RIGHT, FAR = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0)
MAN_HORSE: list[tuple[str, Box]] = [("man", LEFT), ("horse", RIGHT)]
MAN_HORSE_MAT = [*MAN_HORSE, ("mat", FAR)]


def tables(*pairs: tuple[ImageGraph, ImageGraph]) -> tuple[GraphTable, GraphTable]:
    return tabulate([p for p, _ in pairs], [r for _, r in pairs])


FIRST = image(MAN_HORSE_MAT, (0, "on", 1), (0, "on", 2), (1, "near", 2), (0, "near", 2))
SECOND = image(MAN_HORSE, (0, "on", 1))
FOUND_IN_FIRST = image(MAN_HORSE_MAT, (0, "on", 1), (1, "near", 2), (2, "near", 0))
PAIRS = (FOUND_IN_FIRST, FIRST), (SECOND, SECOND), (ImageGraph(), SECOND)
"""First: 1 of 2 on, 1 of 2 near. Second: 1 of 1 on. Third: nothing predicted, 1 on."""


def test_sgb_leaves_out_images_without_prediction() -> None:
    m = sgb(*tables(*PAIRS), predicates=["near", "on", "in", "of"])
    assert m["recall@20"].value == pytest.approx((2 / 4 + 1) / 2)
    # on: (1/2 + 1) / 2 = 3/4, near: 1/2; over all 4 of the vocabulary.
    assert m["mean_recall@20"].value == pytest.approx((3 / 4 + 1 / 2) / 4)
    assert sgb(*tables(*PAIRS))["mean_recall@20"].value == pytest.approx((3 / 4 + 1 / 2) / 2)
    reference = tables(*PAIRS)[1]
    assert by_name(m["mean_recall@100"], reference.predicate_names) == {"near": 0.5, "on": 0.75}


def test_r1_sgg_counts_every_image() -> None:
    reference = tables(*PAIRS)[1]
    m = r1_sgg(*tables(*PAIRS))
    assert m["ng_recall"].value == pytest.approx((2 / 4 + 1 + 0) / 3)
    assert m["ng_recall_pooled"].value == pytest.approx(3 / 6)
    # on: 1/2, 1, 0 by image, 2 of 4 in all; near: 1/2, 1 of 2.
    assert m["ng_mean_recall"].value == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert m["ng_mean_recall_pooled"].value == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert by_name(m["ng_mean_recall"], reference.predicate_names) == {"near": 0.5, "on": 0.5}


def test_pooled_and_by_image_differ_where_images_are_unequal() -> None:
    m = r1_sgg(*tables((SECOND, FIRST), (SECOND, SECOND)))
    assert values(m, "ng_recall", "ng_recall_pooled") == pytest.approx(((1 / 4 + 1) / 2, 2 / 5))
    # on: 1/2 and 1 by image, 2 of 3 in all; near: 0 of 2.
    names = "ng_mean_recall", "ng_mean_recall_pooled"
    assert values(m, *names) == pytest.approx(((3 / 4 + 0) / 2, (2 / 3 + 0) / 2))


def test_one_prediction_finds_all_that_it_overlaps_and_repeats_count_each() -> None:
    twins = [("man", LEFT), ("man", LEFT), ("mat", FAR)]
    reference = image(twins, (0, "on", 2), (1, "on", 2), (1, "on", 2), (2, "on", 0))
    prediction = image([("man", LEFT), ("mat", FAR)], (0, "on", 1))
    both = tables((prediction, reference))
    assert sgb(*both)["recall@20"].value == 3 / 4
    assert r1_sgg(*both)["ng_recall"].value == 3 / 4


def test_sgb_rows_count_in_the_order_they_were_written() -> None:
    """Neither scores nor the graph constraint change the first K rows."""
    wrong = [(1, "near", 0)] * 20
    prediction = image(MAN_HORSE, *wrong, (0, "on", 1), relation_scores=[0.5] * 20 + [1.0])
    m = sgb(*tables((prediction, SECOND)))
    assert values(m, "recall@20", "recall@50") == (0, 1)
    assert values(m, "ng_recall@20", "ng_mean_recall@20") == (1, 1)  # its cells go by score


def test_sgb_counts_the_last_pixel_of_a_box() -> None:
    """4 of 9 columns without it, 5 of 10 with it; a line has one column."""
    for box, part in (
        ((0.0, 0.0, 9.0, 9.0), (0.0, 0.0, 4.0, 9.0)),
        ((7.0, 0.0, 7.0, 9.0), (7.0, 0.0, 7.0, 9.0)),
    ):
        reference = image([("man", box), ("mat", FAR)], (0, "on", 1))
        prediction = image([("man", part), ("mat", FAR)], (0, "on", 1))
        both = tables((prediction, reference))
        assert sgb(*both)["recall@20"].value == 1
        assert r1_sgg(*both)["ng_recall"].value == 0


def test_sgb_boxes_that_end_before_they_begin_overlap_nothing() -> None:
    for box in ((5.0, 0.0, 4.0, 9.0), (5.0, 5.0, 0.0, 0.0)):
        both = tables((image([("man", box)], (0, "on", 0)),) * 2)
        assert sgb(*both)["recall@20"].value == 0


def test_sgb_cells_of_score_zero_may_hit() -> None:
    """One row makes a table of as many cells as predicates, all of them among the first 100."""
    prediction = image(MAN_HORSE, (0, "near", 1))
    m = sgb(*tables((prediction, SECOND)), predicates=["near", "on"])
    assert values(m, "recall@100", "ng_recall@100", "ng_mean_recall@100") == (0, 1, 1 / 2)


def test_sgb_has_100_cells() -> None:
    """101 rows with scores leave no room for a cell without."""
    prediction = image(MAN_HORSE, *[(0, "near", 1)] * 101)
    m = sgb(*tables((prediction, SECOND)), predicates=["near", "on"])
    assert m["ng_recall@100"].value == 0


def test_sgb_columns_of_no_predicate_take_places() -> None:
    """R1-SGG's rows have 150 columns for 50 predicates; a lone row's first 100 are what they are.

    All of them have score 0 but one, and numpy's sort decides: as in a plain argsort.
    """
    vocabulary = [f"p{i}" for i in range(50)]
    scores = np.zeros(150)
    scores[7] = 1
    first = np.argsort(-scores)[:100]
    prediction = image(MAN_HORSE, (0, "p7", 1))
    found = []
    for i, predicate in enumerate(vocabulary):
        reference = image(MAN_HORSE, (0, predicate, 1))
        both = tables((prediction, reference))
        m = sgb(*both, predicates=vocabulary, num_columns=150)
        found += [i] * int(m["ng_recall@100"].value)
    assert found == sorted(first[first < 50].tolist())


def test_sgb_leaves_out_rows_that_have_no_column() -> None:
    """Then an image may have no row left, and is skipped like one without prediction."""
    both = tables((image(MAN_HORSE, (0, "hates", 1)), SECOND), (SECOND, SECOND))
    assert sgb(*both, predicates=["near", "on"])["recall@20"].value == 1
    assert sgb(*both)["recall@20"].value == 1 / 2


def test_sgb_needs_a_column_for_each_predicate() -> None:
    with pytest.raises(ValueError, match="1 columns do not hold 2 predicates"):
        sgb(*tables(*PAIRS), predicates=["near", "on"], num_columns=1)


def test_sgb_zero_shot_by_what_was_seen() -> None:
    seen = {("man", "on", "horse"), ("horse", "near", "mat")}
    # In the first image (man on mat) and (man near mat) are new and not found; none in the others.
    m = sgb(*tables(*PAIRS), seen=seen)
    assert values(m, "zero_shot_recall@20", "ng_zero_shot_recall@20") == (0, 0)
    others = sgb(*tables(*PAIRS), seen={("man", "on", "horse"), ("man", "near", "mat")})
    assert others["zero_shot_recall@20"].value == 1 / 2
    assert np.isnan(sgb(*tables((SECOND, SECOND)), seen=seen)["zero_shot_recall@20"].value)
    assert "zero_shot_recall@20" not in sgb(*tables(*PAIRS))


def test_nothing_predicted_at_all() -> None:
    both = tables((ImageGraph(), SECOND))
    m = sgb(*both, predicates=["near", "on"])
    assert np.isnan(m["recall@20"].value)
    assert m["mean_recall@20"].value == 0  # a sum over the vocabulary, as there
    assert r1_sgg(*both)["ng_recall"].value == 0
