"""The headline protocol on images whose hits are counted by hand."""

import numpy as np
import pytest

from scene_graph.metrics.duplicates import duplicate_objects, duplicate_relations
from scene_graph.metrics.recall import by_name
from scene_graph.metrics.strict import StrictResult, strict
from scene_graph.metrics.table import ImageGraph, tabulate
from tests.metric_graphs import Box, image, values

LEFT, RIGHT, FAR = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0)
MAN_HORSE: list[tuple[str, Box]] = [("man", LEFT), ("horse", RIGHT)]
MAN_HORSE_MAT = [*MAN_HORSE, ("mat", FAR)]
TRIPLET = ("triplet_recall", "triplet_precision", "triplet_f1")
OBJECT = ("object_recall", "object_precision", "object_f1")


def score(
    *pairs: tuple[ImageGraph, ImageGraph], seen: set[tuple[str, str, str]] | None = None
) -> StrictResult:
    return strict(*tabulate([p for p, _ in pairs], [r for _, r in pairs]), seen=seen)


def test_two_images_one_without_prediction() -> None:
    first = image(MAN_HORSE_MAT, (0, "on", 1), (0, "near", 1), (0, "on", 2), (1, "on", 2))
    prediction = image(MAN_HORSE, (0, "on", 1), (1, "on", 0))
    second = image(MAN_HORSE, (0, "on", 1))
    result = score((prediction, first), (ImageGraph(), second))
    m = result.metrics
    assert m["recall@20"].value == pytest.approx((1 / 4 + 0) / 2)
    # 1 of 2 predicted and 1 of 4 to find; nothing predicted counts 0.
    assert values(m, *TRIPLET) == pytest.approx(((1 / 4) / 2, (1 / 2) / 2, (2 / 6) / 2))
    # on: 1 of 4 (3 in the first image, 1 in the second), near: 0 of 1.
    assert m["mean_recall@20"].value == pytest.approx((1 / 4 + 0) / 2)
    # Objects: 2 of 3 found by 2 predicted; then 0 of 2 by none.
    assert values(m, *OBJECT) == pytest.approx(((2 / 3) / 2, 1 / 2, (4 / 5) / 2))
    assert result.by_image("recall@100").tolist() == [1 / 4, 0]
    assert result.by_image("triplet_f1").tolist() == [pytest.approx(2 / 6), 0]


def test_an_image_without_references_counts_nowhere() -> None:
    found = image(MAN_HORSE, (0, "on", 1))
    result = score((found, found), (found, ImageGraph()))
    assert values(result.metrics, "recall@20", *TRIPLET, *OBJECT) == (1,) * 7
    assert np.isnan(result.by_image("recall@100")[1])
    assert np.isnan(result.by_image("triplet_f1")[1])


def test_the_graph_constraint_keeps_the_first_predicate_of_a_pair() -> None:
    reference = image(MAN_HORSE, (0, "on", 1))
    written = image(MAN_HORSE, (0, "near", 1), (0, "on", 1), (1, "near", 0))
    names = "recall@20", "ng_recall@20", "triplet_precision"
    assert values(score((written, reference)).metrics, *names) == pytest.approx((0, 1, 1 / 3))
    by_score = image(MAN_HORSE, (0, "near", 1), (0, "on", 1), relation_scores=[0.5, 0.6])
    assert values(score((by_score, reference)).metrics, *names) == pytest.approx((1, 1, 1 / 2))


def test_the_score_is_of_relation_and_objects_together() -> None:
    twice = [("man", LEFT), ("horse", RIGHT), ("horse", RIGHT), *[("mat", FAR)] * 25]
    wrong = [(0, "near", 3 + i) for i in range(20)]
    reference = image(MAN_HORSE, (0, "on", 1))
    # Behind 20 others with 0.5 x 0.9 = 0.45, before them with 0.6 x 0.9 = 0.54.
    for of_object, found in ((0.5, 0.0), (0.6, 1.0)):
        scores = [1.0, 1.0, of_object] + [0.5] * 25
        prediction = image(
            twice, *wrong, (0, "on", 2), scores=scores, relation_scores=[1.0] * 20 + [0.9]
        )
        m = score((prediction, reference)).metrics
        assert values(m, "recall@20", "recall@50", "ng_recall@20") == (found, 1, found)


@pytest.mark.parametrize(("num_wrong", "first"), [(19, 20), (20, 50), (49, 50), (50, 100)])
def test_the_first_k(num_wrong: int, first: int) -> None:
    objects = [*MAN_HORSE, *[("mat", FAR)] * num_wrong]
    wrong = [(0, "near", 2 + i) for i in range(num_wrong)]
    m = score((image(objects, *wrong, (0, "on", 1)), image(MAN_HORSE, (0, "on", 1)))).metrics
    for k in (20, 50, 100):
        names = f"recall@{k}", f"ng_recall@{k}", f"mean_recall@{k}", f"ng_mean_recall@{k}"
        assert values(m, *names) == (float(k >= first),) * 4


def test_the_constraint_comes_before_the_first_k() -> None:
    """20 predicates of one pair take one place of the 20, not all."""
    wrong = [(0, f"wrong {i}", 1) for i in range(20)]
    prediction = image(MAN_HORSE, *wrong, (1, "on", 0))
    m = score((prediction, image(MAN_HORSE, (1, "on", 0)))).metrics
    assert values(m, "recall@20", "ng_recall@20", "ng_recall@50") == (1, 0, 1)


def test_as_many_hits_as_can_be() -> None:
    """The first prediction could claim either reference; the second only the tall one."""
    tall, low = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 7.0)
    either, only_tall = (0.0, 0.0, 10.0, 9.0), (0.0, 2.0, 10.0, 12.0)  # IoU .9 and .78; .67 and .42
    reference = image([("man", tall), ("man", low), ("mat", FAR)], (0, "on", 2), (1, "on", 2))
    prediction = image(
        [("man", either), ("man", only_tall), ("mat", FAR)], (0, "on", 2), (1, "on", 2)
    )
    m = score((prediction, reference)).metrics
    assert values(m, "recall@20", *TRIPLET, *OBJECT) == (1,) * 7


def test_one_prediction_claims_one_reference() -> None:
    twins = [("man", LEFT), ("man", LEFT), ("mat", FAR)]
    reference = image(twins, (0, "on", 2), (1, "on", 2))
    prediction = image([("man", LEFT), ("mat", FAR)], (0, "on", 1))
    result = score((prediction, reference))
    assert values(result.metrics, *TRIPLET) == pytest.approx((1 / 2, 1, 2 / 3))
    assert result.reference_relation_hits.sum() == 1
    assert result.reference_object_hits.tolist() == [True, False, True]


def test_repeats() -> None:
    """A reference relation that is there twice is to be found once; two predictions are two."""
    reference = image(MAN_HORSE, (0, "on", 1), (1, "on", 0), (0, "on", 1))
    prediction = image(MAN_HORSE, (0, "on", 1), (0, "on", 1))
    result = score((prediction, reference))
    assert values(result.metrics, "recall@20", *TRIPLET) == pytest.approx((1 / 2,) * 4)
    assert result.predicted_relation_hits.sum() == 1
    assert result.reference_relation_hits.tolist() == [True, False, True]
    assert by_name(
        result.predicate_recall, tabulate([prediction], [reference])[1].predicate_names
    ) == {"on": 0.5}


def test_flags_of_all_images() -> None:
    first = image(MAN_HORSE_MAT, (0, "on", 1), (1, "near", 2))
    prediction = image([MAN_HORSE[1], MAN_HORSE[0]], (1, "near", 0), (1, "on", 0))
    second = image(MAN_HORSE, (1, "near", 0))
    result = score((prediction, first), (second, second))
    assert result.predicted_relation_hits.tolist() == [False, True, True]
    assert result.reference_relation_hits.tolist() == [True, False, True]
    assert result.predicted_object_hits.all()
    assert result.reference_object_hits.tolist() == [True, True, False, True, True]


def test_zero_shot_recall_is_of_triplets_that_training_never_had() -> None:
    reference = image(MAN_HORSE_MAT, (0, "on", 1), (0, "on", 2), (1, "on", 2))
    prediction = image(MAN_HORSE_MAT, (0, "on", 1), (0, "on", 2))
    only_seen = image(MAN_HORSE, (0, "on", 1))
    seen = {("man", "on", "horse"), ("horse", "on", "man")}
    m = score((prediction, reference), (only_seen, only_seen), seen=seen).metrics
    assert m["zero_shot_recall@20"].value == 1 / 2
    assert m["ng_zero_shot_recall@100"].value == 1 / 2
    assert np.isnan(score((only_seen, only_seen), seen=seen).metrics["zero_shot_recall@20"].value)
    assert "zero_shot_recall@20" not in score((only_seen, only_seen)).metrics


@pytest.mark.parametrize(
    ("box", "hits"),
    [
        ((0.0, 0.0, 10.0, 5.0), 1),  # exactly half
        ((0.0, 0.0, 10.0, 4.9), 0),
        ((0.0, 0.0, 10.0, 20.0), 1),
        ((0.0, 0.0, 10.0, 0.0), 0),  # no height
        ((10.0, 10.0, 0.0, 0.0), 0),  # corners swapped
    ],
)
def test_half_is_enough(box: Box, hits: int) -> None:
    objects = [("man", box), ("horse", RIGHT)]
    for sides in ((objects, MAN_HORSE), (MAN_HORSE, objects)):
        predicted, reference = (image(side, (0, "on", 1), (1, "on", 0)) for side in sides)
        m = score((predicted, reference)).metrics
        assert values(m, "recall@20", "object_recall") == (hits, (1 + hits) / 2)


def test_boxes_without_area_overlap_nothing_not_even_themselves() -> None:
    flat = image([("man", (3.0, 0.0, 3.0, 9.0)), ("dot", (1.0, 1.0, 1.0, 1.0))], (0, "on", 1))
    m = score((flat, flat)).metrics
    assert values(m, "recall@20", "object_f1", "mean_iou") == (0, 0, 0)


def test_mean_iou_is_of_the_assignment_whatever_the_names() -> None:
    # man is left by half: IoU 1/3; the dog stands where the horse is: 1. The mat has no partner.
    prediction = image([("dog", RIGHT), ("man", (5.0, 0.0, 15.0, 10.0))], size=(50.0, 10.0))
    reference = image(MAN_HORSE_MAT, size=(50.0, 10.0))
    assert score((prediction, reference)).metrics["mean_iou"].value == pytest.approx(
        (1 / 3 + 1) / 2
    )


def test_swapped_corners_fit_nothing() -> None:
    swapped = image([("man", (10.0, 10.0, 0.0, 0.0)), ("mat", FAR)], size=(50.0, 10.0))
    straight = image([("man", LEFT), ("mat", FAR)], size=(50.0, 10.0))
    for pair in ((swapped, straight), (straight, swapped)):
        assert score(pair).metrics["mean_iou"].value == pytest.approx(1 / 2)


def test_mean_iou_weighs_pairs_not_images() -> None:
    one = image([("man", LEFT)], size=(50.0, 10.0))
    half = image([("man", (0.0, 0.0, 10.0, 5.0))], size=(50.0, 10.0))
    three = image(MAN_HORSE_MAT, size=(50.0, 10.0))
    m = score((half, one), (three, three), (ImageGraph(), three)).metrics
    assert m["mean_iou"].value == pytest.approx((0.5 + 3) / 4)


def test_what_is_said_again_of_the_same_place_is_a_duplicate() -> None:
    moved = (1.0, 0.0, 11.0, 10.0)
    twice = [("man", LEFT), ("horse", RIGHT), ("man", moved), ("man", FAR), ("horse", LEFT)]
    edges = [(0, "on", 1), (2, "on", 1), (3, "on", 1), (0, "near", 1), (0, "on", 1)]
    table, _ = tabulate([image(twice, *edges), image(MAN_HORSE, (0, "on", 1))], [ImageGraph()] * 2)
    assert duplicate_objects(table).nonzero()[0].tolist() == [2]
    assert duplicate_relations(table).nonzero()[0].tolist() == [1, 4]
