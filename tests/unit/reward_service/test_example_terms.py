"""The terms of `examples/rewards`, through the reward service's own scorer."""

import json
from typing import Any

import pytest

from reward_service.own_terms import load_own_terms
from reward_service.scoring import make_scorer
from services.schemas.rewards import Reward, RewardGroup
from tests.unit.reward_service.own_terms import EXAMPLES, example_rubric

MAN, HORSE, HAT = (
    {"id": "man.1", "bbox": [0, 0, 400, 1000]},
    {"id": "horse.1", "bbox": [400, 500, 1000, 1000]},
    {"id": "hat.1", "bbox": [100, 0, 300, 200]},
)
ON, RIDING, HAS = (
    {"subject": "man.1", "predicate": "on", "object": "horse.1"},
    {"subject": "man.1", "predicate": "riding", "object": "horse.1"},
    {"subject": "man.1", "predicate": "has", "object": "hat.1"},
)
pytestmark = pytest.mark.usefixtures("own_terms_are_forgotten")


def scored(name: str, objects: list[Any], relationships: list[Any]) -> Reward:
    """Against a man who is on and riding a horse, with a hat, in an image of 1000 x 1000."""
    terms, rubric = example_rubric(name)
    load_own_terms(terms)
    answer = json.dumps({"objects": objects, "relationships": relationships})
    group = {
        "group_id": "g",
        "image_size": [1000, 1000],
        "box_space": "relative_1000",
        "reference": {"objects": [MAN, HORSE, HAT], "relationships": [ON, RIDING, HAS]},
        "completions": [f"<answer>{answer}</answer>"],
    }
    (one,) = make_scorer(rubric).score([RewardGroup.model_validate(group)])
    return one.rewards[0]


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_the_reference_earns_all(name: str) -> None:
    reward = scored(name, [MAN, HORSE, HAT], [ON, RIDING, HAS])
    assert set(reward.breakdown.values()) == {1.0}


def test_a_rare_predicate_weighs_more() -> None:
    def of(edge: Any) -> float:
        return scored("sgg-r3", [MAN, HORSE, HAT], [edge]).breakdown["rare_edges"]

    assert of(ON) == pytest.approx(2 / (2 + of_weight("riding") + of_weight("has")))
    assert of(RIDING) / of(ON) == pytest.approx(of_weight("riding") / 2)
    assert of(RIDING) > 2 * of(ON)


def of_weight(predicate: str) -> float:
    """From `on` (712409 in VG150) with 2 to `walking in` (1740) with 10."""
    from math import log

    count = {"riding": 8856, "has": 277936}[predicate]
    return 2 + 8 * log(712409 / count) / log(712409 / 1740)


def test_a_wrong_name_of_an_end_earns_nothing_of_its_triplet() -> None:
    dog = HORSE | {"id": "dog.1"}
    edge = RIDING | {"object": "dog.1"}
    assert scored("sgg-r3", [MAN, dog, HAT], [edge]).breakdown["rare_edges"] == 0


def test_clusters_count_once() -> None:
    """on; riding; has: three clusters. A second `on` the other way is in none."""
    assert scored("sgg-r3", [MAN, HORSE, HAT], [RIDING]).breakdown[
        "cluster_coverage"
    ] == pytest.approx(1 / 3)
    near = ON | {"predicate": "near"}  # another predicate of space, so of the same cluster as `on`
    assert scored("sgg-r3", [MAN, HORSE, HAT], [near]).breakdown[
        "cluster_coverage"
    ] == pytest.approx(1 / 3)
    assert scored("sgg-r3", [MAN, HORSE, HAT], []).breakdown["cluster_coverage"] == 0


def test_repeats_score_0() -> None:
    many = [MAN | {"id": f"man.{i}"} for i in range(1, 22)]
    assert scored("sgg-r3", many[:20], []).breakdown["category_f1"] == pytest.approx(0.5)
    assert scored("sgg-r3", many, []).breakdown["category_f1"] == 0


def test_unsupported_parts_cost() -> None:
    ghost = {"id": "ghost.1", "bbox": [600, 0, 1000, 300]}
    spooky = {"subject": "ghost.1", "predicate": "near", "object": "man.1"}
    reward = scored("scene-graph-vlm", [MAN, ghost], [ON | {"object": "ghost.1"}, spooky])
    assert reward.breakdown["supported_objects"] == 0.5
    assert reward.breakdown["supported_triplets"] == 0
    reward = scored("scene-graph-vlm", [MAN, HORSE, ghost], [ON, spooky])
    assert reward.breakdown["supported_triplets"] == 0.75
    assert reward.breakdown["triplet_precision"] == 0.5


def test_an_answer_without_triplets_has_none_unsupported() -> None:
    """As in the published code: the reward of silence is a hole that its other terms outweigh."""
    reward = scored("scene-graph-vlm", [MAN], [])
    assert reward.breakdown["supported_triplets"] == 1
    assert reward.breakdown["triplet_precision"] == 0
