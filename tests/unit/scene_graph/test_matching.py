"""Pair costs, the object assignment and the pairing of triplets, on numbers worked out by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_graph.cleaning import clean_columns
from scene_graph.graph import GraphColumns, Relationship, SceneObject
from scene_graph.matching import Comparison, ObjectPairs, compare, iou_giou_l1, one_to_one

Box = tuple[float, float, float, float]
Item = tuple[str, Box]
Edge = tuple[str, str, str]
ONE = np.zeros(1, dtype=np.int64)


def graph(*items: Item, edges: list[Edge] | None = None) -> GraphColumns:
    objects = [SceneObject(id=name, bbox=box) for name, box in items]
    relationships = [Relationship(subject=s, predicate=p, object=o) for s, p, o in edges or []]
    columns, dropped = clean_columns(objects, relationships, (1.0, 1.0))
    assert not dropped
    return columns


def pairs_of(c: Comparison) -> ObjectPairs:
    assert c.pairs is not None
    return c.pairs


def matched_ids(p: GraphColumns, r: GraphColumns) -> dict[str, str]:
    """Predicted id to reference id."""
    c = compare([p], [r], ONE)
    pairs = pairs_of(c)
    left = c.predicted.written[pairs.predicted[pairs.matched]]
    right = c.reference.written[pairs.reference[pairs.matched]]
    return {p.ids[i]: r.ids[j] for i, j in zip(left, right, strict=True)}


def test_iou_giou_and_l1_by_hand() -> None:
    # Unit squares side by side with a gap of one: hull 3, union 2, GIoU = -1/3.
    p = np.array([[0.0, 0.0, 1.0, 1.0]] * 3).T
    r = np.array([[0.5, 0.0, 1.5, 1.0], [2.0, 0.0, 3.0, 1.0], [0.0, 0.0, 1.0, 1.0]]).T
    iou, giou, l1 = iou_giou_l1(p, r)
    assert iou == pytest.approx([1 / 3, 0, 1])
    assert giou == pytest.approx([1 / 3, -1 / 3, 1])
    assert l1 == pytest.approx([1, 4, 0])


def test_a_box_too_thin_for_floats_overlaps_nothing() -> None:
    thin = np.array([[0.0], [0.0], [1e-200], [1e-200]])
    iou, giou, _ = iou_giou_l1(thin, thin)
    assert iou.tolist() == [0.0]
    assert np.isfinite(giou).all()


def test_the_name_decides_between_equal_boxes() -> None:
    box = (0.1, 0.1, 0.5, 0.5)
    found = matched_ids(graph(("a.1", box), ("b.2", box)), graph(("b.1", box), ("c.2", box)))
    assert found == {"b.2": "b.1", "a.1": "c.2"}


def test_a_much_better_box_outweighs_the_name() -> None:
    near, far = (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0)
    found = matched_ids(graph(("dog.1", near), ("cat.2", far)), graph(("cat.1", near)))
    assert found == {"dog.1": "cat.1"}


def test_nothing_matches_nothing() -> None:
    for p, r in ((graph(), graph(("cat.1", (0, 0, 1, 1)))), (graph(), graph())):
        assert matched_ids(p, r) == matched_ids(r, p) == {}


coordinates = st.tuples(*[st.floats(0, 1)] * 4).map(
    lambda c: (min(c[0], c[1]), min(c[2], c[3]), max(c[0], c[1]) + 0.01, max(c[2], c[3]) + 0.01)
)
items = st.lists(st.tuples(st.sampled_from("abc"), coordinates), min_size=1, max_size=4).map(
    lambda found: [(f"{name}.{i}", box) for i, (name, box) in enumerate(found)]
)


@given(st.lists(st.tuples(items, items), min_size=1, max_size=3))
def test_no_other_assignment_is_cheaper(graphs: list[tuple[list[Item], list[Item]]]) -> None:
    sides = [graph(*p) for p, _ in graphs], [graph(*r) for _, r in graphs]
    c = compare(*sides, np.arange(len(graphs)))
    pairs = pairs_of(c)
    p, r = c.predicted.boxes[:, pairs.predicted], c.reference.boxes[:, pairs.reference]
    _, giou, l1 = iou_giou_l1(p, r)
    cost = (1 - pairs.similarity) + 2 * (1 - giou) + 5 * l1
    owner = c.predicted.object_graph[pairs.predicted]
    assert len(set(pairs.predicted[pairs.matched])) == len(pairs.matched)
    for b, (predicted, reference) in enumerate(graphs):
        table = cost[owner == b].reshape(len(predicted), len(reference))
        small, large = sorted(table.shape)
        oriented = table if table.shape[0] == small else table.T
        best = min(
            sum(oriented[i, j] for i, j in enumerate(chosen))
            for chosen in itertools.permutations(range(large), small)
        )
        mine = pairs.matched[owner[pairs.matched] == b]
        assert cost[mine].sum() == pytest.approx(best)
        assert len(mine) == len(set(pairs.reference[mine])) == small


def test_one_to_one_keeps_the_greatest_sum() -> None:
    # The first pair alone is worth most, but it would leave the other two with nothing.
    left, right = np.array([0, 0, 1]), np.array([10, 11, 10])
    owner = np.zeros(3, dtype=np.int64)
    assert set(one_to_one(owner, left, right, np.array([0.9, 0.5, 0.5]))) == {1, 2}
    assert set(one_to_one(owner, left, right, np.array([0.9, 0.3, 0.3]))) == {0}
    assert one_to_one(owner[:0], left[:0], right[:0], np.empty(0)).size == 0


def test_one_to_one_solves_each_graph_for_itself() -> None:
    owner = np.array([1, 0, 1, 0])
    left, right = np.array([5, 1, 6, 2]), np.array([8, 3, 8, 3])
    kept = one_to_one(owner, left, right, np.array([0.1, 0.2, 0.3, 0.4]))
    assert sorted(kept.tolist()) == [2, 3]


LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def test_triplets_are_paired_by_names_and_places() -> None:
    r = graph(("a.1", LEFT), ("b.1", RIGHT), edges=[("a.1", "on", "b.1")])
    edges = [
        ("a.1", "on", "b.1"),
        ("a.1", "on", "b.2"),
        ("a.1", "at", "b.1"),
        ("b.1", "on", "a.1"),
    ]
    p = graph(("a.1", LEFT), ("b.1", RIGHT), ("b.2", LEFT), edges=edges)
    t = compare([p], [r], ONE).triplets
    assert t.predicted.tolist() == [0, 1]  # equal names; the others have no similarity
    assert t.overlap.tolist() == [True, False]
    assert t.matched.tolist() == [True, False]


def test_names_alone_pair_triplets_where_there_are_no_boxes() -> None:
    def names(*edges: Edge) -> GraphColumns:
        relationships = [Relationship(subject=s, predicate=p, object=o) for s, p, o in edges]
        return clean_columns([], relationships, (1.0, 1.0), "cls")[0]

    p = names(("man.1", "on", "horse.1"), ("man", "near", "dog"))
    r = names(("man.7", "on", "horse.3"), ("man.1", "on", "horse.1"))
    c = compare([p], [r], ONE, boxes=False)
    assert (c.pairs, c.triplets.predicted.tolist()) == (None, [0, 0])
    assert len(c.assigned) == 1


def test_a_group_of_predictions_shares_its_reference() -> None:
    r = [graph(("a.1", LEFT)), graph(("b.1", RIGHT), ("a.1", LEFT))]
    p = [graph(("a.1", LEFT)), graph(("b.9", RIGHT)), graph(("a.1", LEFT), ("b.1", RIGHT))]
    c = compare(p, r, np.array([1, 0, 1]))
    pairs = pairs_of(c)
    assert len(pairs.iou) == 2 + 1 + 4
    assert pairs.same_name[pairs.matched].tolist() == [True, False, True, True]
