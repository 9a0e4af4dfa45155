"""Pair costs and the object assignment, on numbers worked out by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.matching import (
    GraphArrays,
    exact_similarity,
    iou_and_giou,
    match_objects,
    one_to_one,
    triplet_hits,
)

Item = tuple[str, tuple[float, float, float, float]]


def arrays(*items: Item, edges: list[tuple[str, str, str]] | None = None) -> GraphArrays:
    graph = SceneGraph(
        objects=tuple(SceneObject(id=name, bbox=box) for name, box in items),
        relationships=tuple(
            Relationship(subject=s, predicate=p, object=o) for s, p, o in edges or []
        ),
    )
    return GraphArrays.from_graph(graph)


def test_similarity_is_equality() -> None:
    assert exact_similarity(["a", "b"], ["b", "c", "a"]).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert exact_similarity([], ["a"]).shape == (0, 1)


def test_iou_and_giou_by_hand() -> None:
    # Unit squares side by side with a gap of one: hull 3, union 2, GIoU = -1/3.
    p = np.array([[0.0, 0.0, 1.0, 1.0]])
    r = np.array([[0.5, 0.0, 1.5, 1.0], [2.0, 0.0, 3.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    iou, giou = iou_and_giou(p, r)
    assert iou[0] == pytest.approx([1 / 3, 0, 1])
    assert giou[0] == pytest.approx([1 / 3, -1 / 3, 1])


def test_a_box_too_thin_for_floats_overlaps_nothing() -> None:
    thin = np.array([[0.0, 0.0, 1e-200, 1e-200]])
    iou, giou = iou_and_giou(thin, thin)
    assert iou.tolist() == [[0.0]]
    assert np.isfinite(giou).all()


def test_the_name_decides_between_equal_boxes() -> None:
    box = (0.1, 0.1, 0.5, 0.5)
    m = match_objects(arrays(("a.1", box), ("b.2", box)), arrays(("b.1", box), ("c.2", box)))
    pairs = dict(zip(m.predicted.tolist(), m.reference.tolist(), strict=True))
    assert pairs == {1: 0, 0: 1}


def test_a_much_better_box_outweighs_the_name() -> None:
    near, far = (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0)
    m = match_objects(arrays(("dog.1", near), ("cat.2", far)), arrays(("cat.1", near)))
    # objects are sorted by id: index 0 is the cat far away, 1 the dog in the right place
    assert (m.predicted.tolist(), m.reference.tolist()) == ([1], [0])


def test_nothing_matches_nothing() -> None:
    m = match_objects(arrays(), arrays(("cat.1", (0, 0, 1, 1))))
    assert (m.predicted.size, m.reference.size) == (0, 0)


coordinates = st.tuples(*[st.floats(0, 1)] * 4).map(
    lambda c: (min(c[0], c[1]), min(c[2], c[3]), max(c[0], c[1]) + 0.01, max(c[2], c[3]) + 0.01)
)
items = st.lists(st.tuples(st.sampled_from("abc"), coordinates), min_size=1, max_size=4).map(
    lambda found: [(f"{name}.{i}", box) for i, (name, box) in enumerate(found)]
)


@given(items, items)
def test_no_other_assignment_is_cheaper(predicted: list[Item], reference: list[Item]) -> None:
    p, r = arrays(*predicted), arrays(*reference)
    m = match_objects(p, r)
    _, giou = iou_and_giou(p.boxes, r.boxes)
    cost = (1 - m.similarity) + 2 * (1 - giou) + 5 * m.l1
    small, large = sorted(cost.shape)
    oriented = cost if cost.shape[0] == small else cost.T
    best = min(
        sum(oriented[i, j] for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(large), small)
    )
    assert cost[m.predicted, m.reference].sum() == pytest.approx(best)
    assert len(set(m.predicted)) == len(set(m.reference)) == small


def test_claims_are_one_to_one_and_as_many_as_possible() -> None:
    # Greedy choice of item 0 for prediction 0 would leave prediction 1 with nothing.
    hits = np.array([[True, True, False], [True, False, False]])
    assert one_to_one(hits).tolist() == [0, 1]
    assert one_to_one(np.ones((1, 5), dtype=bool)).size == 1
    assert one_to_one(np.zeros((0, 3), dtype=bool)).size == 0
    assert one_to_one(np.zeros((3, 2), dtype=bool)).size == 0


def test_triplets_hit_by_names_and_places() -> None:
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    r = arrays(("a.1", left), ("b.1", right), edges=[("a.1", "on", "b.1")])
    p = arrays(
        ("a.1", left),
        ("b.1", right),
        ("b.2", left),
        edges=[
            ("a.1", "on", "b.1"),
            ("a.1", "on", "b.2"),
            ("a.1", "at", "b.1"),
            ("b.1", "on", "a.1"),
        ],
    )
    m = match_objects(p, r)
    hits = triplet_hits(p, r, m.similarity, m.iou)
    assert hits.tolist() == [[True], [False], [False], [False]]
