"""The summary of held-out images, on small graphs whose numbers are known."""

import pytest

from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.metrics.heldout_metrics import strict_metrics

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
Box = tuple[float, float, float, float]


def graph(objects: dict[str, Box], *edges: tuple[str, str, str]) -> SceneGraph:
    return SceneGraph(
        objects=tuple(SceneObject(id=name, bbox=box) for name, box in objects.items()),
        relationships=tuple(Relationship(subject=s, predicate=p, object=o) for s, p, o in edges),
    )


REFERENCE = graph(
    {"man.1": LEFT, "horse.1": RIGHT}, ("man.1", "on", "horse.1"), ("man.1", "near", "horse.1")
)


def test_the_reference_itself_is_perfect() -> None:
    m = strict_metrics([(REFERENCE, REFERENCE)])
    assert (m.triplet_recall, m.triplet_precision, m.triplet_f1) == (1, 1, 1)
    assert (m.object_recall, m.object_precision, m.object_f1) == (1, 1, 1)
    assert (m.mean_predicate_recall, m.mean_iou, m.failure_rate) == (1, 1, 0)


def test_failures_count_as_nothing_found() -> None:
    m = strict_metrics([(None, REFERENCE), (REFERENCE, REFERENCE)])
    assert (m.num_images, m.failure_rate) == (2, 0.5)
    assert (m.triplet_recall, m.triplet_precision, m.object_f1) == (0.5, 0.5, 0.5)
    assert m.predicate_recall == {"near": 0.5, "on": 0.5}
    assert m.mean_iou == 1.0  # only over pairs that exist


def test_extra_triplets_cost_precision() -> None:
    prediction = graph(
        {"man.1": LEFT, "horse.1": RIGHT, "dog.1": LEFT, "dog.2": RIGHT},
        ("man.1", "on", "horse.1"),
        ("dog.1", "on", "horse.1"),
        ("dog.1", "on", "dog.2"),
    )
    m = strict_metrics([(prediction, REFERENCE)])
    assert m.triplet_recall == pytest.approx(1 / 2)
    assert m.triplet_precision == pytest.approx(1 / 3)
    assert m.triplet_f1 == pytest.approx(2 / 5)
    assert m.mean_predicate_recall == pytest.approx(1 / 2)
    assert (m.object_recall, m.object_precision) == (1.0, 0.5)
    assert m.object_f1 == pytest.approx(4 / 6)


def test_one_prediction_claims_one_reference() -> None:
    two = graph(
        {"man.1": LEFT, "man.2": LEFT, "horse.1": RIGHT},
        ("man.1", "on", "horse.1"),
        ("man.2", "on", "horse.1"),
    )
    one = graph({"man.1": LEFT, "horse.1": RIGHT}, ("man.1", "on", "horse.1"))
    m = strict_metrics([(one, two)])
    assert (m.triplet_recall, m.triplet_precision) == (0.5, 1.0)
    assert m.object_recall == pytest.approx(2 / 3)


def test_predicates_weigh_the_same_however_frequent() -> None:
    common = graph({"man.1": LEFT, "horse.1": RIGHT}, ("man.1", "on", "horse.1"))
    rare = graph({"man.1": LEFT, "horse.1": RIGHT}, ("man.1", "feeding", "horse.1"))
    m = strict_metrics([(common, common)] * 9 + [(common, rare)])
    assert m.triplet_recall == pytest.approx(0.9)
    assert m.predicate_recall == {"feeding": 0.0, "on": 1.0}
    assert m.mean_predicate_recall == 0.5


def test_a_box_off_by_more_than_half_is_no_hit() -> None:
    moved = graph({"man.1": (0.3, 0.0, 0.8, 1.0), "horse.1": RIGHT}, ("man.1", "on", "horse.1"))
    m = strict_metrics([(moved, REFERENCE)])
    assert (m.triplet_recall, m.object_recall) == (0.0, 0.5)
    assert m.mean_iou == pytest.approx((0.2 / 0.8 + 1) / 2)


def test_images_without_anything_to_find_are_left_out_of_the_means() -> None:
    empty = graph({})
    m = strict_metrics([(REFERENCE, empty), (REFERENCE, REFERENCE)])
    assert (m.triplet_recall, m.object_precision, m.num_images) == (1, 1, 2)


def test_no_images_give_zeros() -> None:
    m = strict_metrics([])
    assert (m.num_images, m.failure_rate, m.triplet_f1, m.mean_iou) == (0, 0, 0, 0)
