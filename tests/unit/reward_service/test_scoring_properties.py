"""What holds for every reward, whatever the graphs."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_service.scoring import RewardScorer, make_scorer
from reward_service.terms import TERMS
from services.schemas.rewards import Reward, RewardGroup, Task

Graph = dict[str, list[dict[str, Any]]]
EVERY_TERM = {
    "terms": dict.fromkeys(TERMS, 1.0),
    "predicate_frequency": {"on": 7, "near": 2},
    "length": {"unit": "characters", "start": 100_000, "end": 200_000},
    "beta": 0.5,
}
SCORERS: dict[Task, RewardScorer] = {
    "sgg": make_scorer(EVERY_TERM),
    "det": make_scorer(EVERY_TERM, "det"),
    "cls": make_scorer(EVERY_TERM, "cls"),
}
SCORER = st.sampled_from(list(SCORERS.values()))
NAMES = ["man", "traffic light", "T-Shirt"]


@st.composite
def boxes(draw: st.DrawFn) -> list[int]:
    x1, y1 = draw(st.integers(0, 90)), draw(st.integers(0, 90))
    return [x1, y1, x1 + draw(st.integers(1, 60)), y1 + draw(st.integers(1, 60))]


BOX = st.one_of(st.sampled_from([[0, 0, 50, 50], [0, 0, 50, 60]]), boxes())  # twins are common


@st.composite
def graphs(draw: st.DrawFn, min_edges: int = 0) -> Graph:
    """Well-formed: ids and triplets are distinct."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6))
    objects = [{"id": f"{name}.{i}", "bbox": draw(BOX)} for i, name in enumerate(names)]
    ids = st.sampled_from([f"{name}.{i}" for i, name in enumerate(names)])
    edge = st.tuples(ids, st.sampled_from(["on", "near", "in front_of"]), ids)
    edges = draw(st.lists(edge, min_size=min_edges, max_size=6, unique=True))
    return {"objects": objects, "relationships": [written(*e) for e in edges]}


def written(subject: str, predicate: str, object_: str) -> dict[str, Any]:
    return {"subject": subject, "predicate": predicate, "object": object_}


def reward(scorer: RewardScorer, reference: Graph, prediction: Graph) -> Reward:
    group = RewardGroup.model_validate(
        {
            "group_id": "g",
            "image_size": (100, 80),
            "box_space": "pixels:100x80",
            "reference": reference,
            "completions": [f"<answer>{json.dumps(prediction)}</answer>"],
        }
    )
    return scorer.score([group])[0].rewards[0]


def renamed(graph: Graph, rng: random.Random) -> Graph:
    """The same graph with other numbers in its ids and other spelling of its names."""
    numbers = rng.sample(range(1000), len(graph["objects"]))
    spell: Callable[[str], str] = rng.choice(
        [str.upper, str.title, lambda name: name.replace(" ", "_")]
    )
    ids = {
        item["id"]: f"{spell(item['id'].rpartition('.')[0])}.{number}"
        for item, number in zip(graph["objects"], numbers, strict=True)
    }
    return {
        "objects": [item | {"id": ids[item["id"]]} for item in graph["objects"]],
        "relationships": [
            written(ids[e["subject"]], spell(e["predicate"]), ids[e["object"]])
            for e in graph["relationships"]
        ],
    }


def shuffled(graph: Graph, rng: random.Random) -> Graph:
    return {key: rng.sample(items, len(items)) for key, items in graph.items()}


@given(SCORER, graphs(), graphs())
def test_every_term_is_bounded(scorer: RewardScorer, reference: Graph, prediction: Graph) -> None:
    got = reward(scorer, reference, prediction)
    assert set(got.breakdown) == set(scorer.weights)
    assert all(0 <= value <= 1 for value in got.breakdown.values())
    assert got.total == pytest.approx(sum(got.breakdown.values()))
    assert got.matched.objects <= len(reference["objects"])
    assert got.matched.relationships <= len(reference["relationships"])


@given(SCORER, graphs(), graphs(), st.randoms())
def test_order_ids_and_spelling_do_not_matter(
    scorer: RewardScorer, reference: Graph, prediction: Graph, rng: random.Random
) -> None:
    expected = reward(scorer, reference, prediction)
    same = shuffled(renamed(reference, rng), rng), shuffled(renamed(prediction, rng), rng)
    got = reward(scorer, *same)
    assert got.breakdown == pytest.approx(expected.breakdown)
    assert got.matched == expected.matched


@given(SCORER, graphs(min_edges=1), st.randoms())
def test_the_reference_earns_the_maximum_of_every_term(
    scorer: RewardScorer, reference: Graph, rng: random.Random
) -> None:
    got = reward(scorer, reference, shuffled(renamed(reference, rng), rng))
    assert got.breakdown == pytest.approx(dict.fromkeys(scorer.weights, 1.0))


@given(graphs(min_edges=1), st.data())
def test_leaving_a_triplet_out_costs(reference: Graph, data: st.DataObject) -> None:
    edges = reference["relationships"]
    index = data.draw(st.integers(0, len(edges) - 1))
    fewer = reference | {"relationships": edges[:index] + edges[index + 1 :]}
    for scorer in (SCORERS["sgg"], SCORERS["cls"]):
        whole, less = reward(scorer, reference, reference), reward(scorer, reference, fewer)
        assert less.breakdown["triplet_f1"] < whole.breakdown["triplet_f1"]
        assert all(less.breakdown[name] <= whole.breakdown[name] + 1e-9 for name in less.breakdown)


@given(graphs(), st.data())
def test_leaving_an_object_out_never_pays(reference: Graph, data: st.DataObject) -> None:
    item = data.draw(st.sampled_from(reference["objects"]))
    left = {
        "objects": [o for o in reference["objects"] if o is not item],
        "relationships": [
            e for e in reference["relationships"] if item["id"] not in (e["subject"], e["object"])
        ],
    }
    for scorer in (SCORERS["sgg"], SCORERS["det"]):
        whole, less = reward(scorer, reference, reference), reward(scorer, reference, left)
        assert less.breakdown["node_category"] < whole.breakdown["node_category"]
        assert less.breakdown["node_box"] < whole.breakdown["node_box"]
        assert less.total < whole.total


@given(graphs(min_edges=1), BOX)
def test_a_junk_box_beside_the_reference_costs(reference: Graph, box: list[int]) -> None:
    balanced = make_scorer("balanced")
    junk = {"objects": [*reference["objects"], {"id": "junk.1", "bbox": box}]}
    assert reward(balanced, reference, reference | junk).total < balanced.max_total - 1e-6


@given(graphs(min_edges=1), graphs(min_edges=1))
def test_a_wrong_triplet_never_pays(reference: Graph, prediction: Graph) -> None:
    end = prediction["objects"][0]["id"]
    wrong = [*prediction["relationships"], written(end, "junk", end)]
    before = reward(SCORERS["sgg"], reference, prediction)
    after = reward(SCORERS["sgg"], reference, prediction | {"relationships": wrong})
    assert after.breakdown["triplet_f1"] <= before.breakdown["triplet_f1"] + 1e-9


@given(graphs(min_edges=1), st.integers(1, 3))
def test_worse_boxes_never_earn_more(reference: Graph, shift: int) -> None:
    scorer = SCORERS["det"]
    item = reference["objects"][0]

    def moved(by: int) -> float:
        box = [c + by for c in item["bbox"]]
        one = {"objects": [item | {"bbox": box}], "relationships": []}
        return reward(scorer, {"objects": [item], "relationships": []}, one).breakdown["node_box"]

    assert moved(2 * shift) < moved(shift) < moved(0) == pytest.approx(1)
