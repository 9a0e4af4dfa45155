"""Every term on numbers worked out by hand, and what a wrong reference or completion does."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from reward_service.rubrics import RUBRICS
from reward_service.scoring import reference_graph, score_group
from services.schemas.rewards import Matched, Reward, RewardGroup

SOFT, HARD = RUBRICS["r1-soft"], RUBRICS["r1-hard"]
MAN, HORSE = [0, 0, 50, 100], [50, 0, 100, 100]
Objects = Sequence[tuple[str, Sequence[float]]]
Edge = tuple[str, str, str]
RIDING, NEAR = ("man.1", "riding", "horse.1"), ("man.1", "near", "horse.1")


def graph(objects: Objects, edges: Sequence[Edge]) -> dict[str, Any]:
    return {
        "objects": [{"id": name, "bbox": box} for name, box in objects],
        "relationships": [{"subject": s, "predicate": p, "object": o} for s, p, o in edges],
    }


REFERENCE = graph([("man.1", MAN), ("horse.1", HORSE)], [RIDING, NEAR])


def group(*texts: str, reference: dict[str, Any] = REFERENCE, **more: Any) -> RewardGroup:
    fields = {"group_id": "g", "image_size": (100, 100), "box_space": "pixels:100x100"}
    return RewardGroup.model_validate(
        fields | {"reference": reference, "completions": list(texts)} | more
    )


def answer(objects: Objects, edges: Sequence[Edge]) -> str:
    return f"<answer>{json.dumps(graph(objects, edges))}</answer>"


def reward(text: str, rubric: Any = SOFT, **more: Any) -> Reward:
    return score_group(group(text, **more), rubric).rewards[0]


PERFECT = answer([("man.1", MAN), ("horse.1", HORSE)], [RIDING, NEAR])


def test_the_reference_earns_everything() -> None:
    best = reward(PERFECT)
    assert best.total == pytest.approx(10)
    assert best.breakdown == pytest.approx(dict.fromkeys(SOFT.terms, 1.0))
    assert best.matched == Matched(objects=2, relationships=2)
    assert reward(PERFECT, HARD).total == pytest.approx(6)


def test_all_terms_of_one_partly_right_answer() -> None:
    """The horse is called a dog and is 10 pixels too narrow; one of two predicates is right."""
    text = answer([("man.1", MAN), ("dog.1", [60, 0, 100, 100])], [("man.1", "riding", "dog.1")])
    got = reward(text).breakdown
    iou, l1 = 40 / 50, 0.1
    assert got["format"] == 1
    assert got["node_category"] == pytest.approx(1 / 2)
    assert got["node_box"] == pytest.approx((1 + (2 * iou + 5 * math.exp(-l1)) / 7) / 2)
    assert got["edge"] == 0  # sim(horse, dog) is 0
    assert reward(text).total == pytest.approx(1 + 2 * got["node_category"] + 2 * got["node_box"])


def test_edge_counts_each_reference_triplet_once() -> None:
    objects: Objects = [("man.1", MAN), ("horse.1", HORSE)]
    one = reward(answer(objects, [RIDING, ("man.1", "eating", "horse.1")]))
    assert one.breakdown["edge"] == pytest.approx(1 / 2)
    reverse = reward(answer(objects, [("horse.1", "riding", "man.1")]))
    assert reverse.breakdown["edge"] == 0


def test_edge_ignores_places_and_edge_hard_does_not() -> None:
    moved = answer([("man.1", [0, 0, 10, 10]), ("horse.1", HORSE)], [RIDING, NEAR])
    assert reward(moved).breakdown["edge"] == pytest.approx(1)
    hard = reward(moved, HARD)
    assert (hard.breakdown["edge_hard"], hard.total) == (0, 1)
    assert hard.matched == Matched(objects=1, relationships=0)


def test_edge_follows_the_matching() -> None:
    """Two men: the triplet must hang on the one who stands where the reference's man is."""
    objects: Objects = [
        ("man.1", [0, 0, 5, 5]),
        ("man.2", MAN),
        ("horse.1", HORSE),
    ]
    right = reward(answer(objects, [("man.2", "riding", "horse.1")]))
    wrong = reward(answer(objects, [("man.1", "riding", "horse.1")]))
    assert (right.breakdown["edge"], wrong.breakdown["edge"]) == (0.5, 0)


def test_edge_hard_is_the_share_of_hit_reference_triplets() -> None:
    shifted = [20, 0, 70, 100]  # IoU 3/7 with the man: under one half
    objects: Objects = [
        ("man.1", MAN),
        ("man.2", shifted),
        ("horse.1", HORSE),
    ]
    text = answer(objects, [NEAR, ("man.2", "riding", "horse.1")])
    assert reward(text, HARD).breakdown["edge_hard"] == pytest.approx(1 / 2)


def test_one_triplet_claims_one_reference_triplet() -> None:
    """Two men ride in the same place; the published code pays one answer for both."""
    reference = graph(
        [("man.1", MAN), ("man.2", MAN), ("horse.1", HORSE)],
        [RIDING, ("man.2", "riding", "horse.1")],
    )
    text = answer([("man.1", MAN), ("horse.1", HORSE)], [RIDING])
    assert reward(text, HARD, reference=reference).breakdown["edge_hard"] == pytest.approx(1 / 2)
    assert reward(text, reference=reference).breakdown["edge"] == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("text", "require_thinking", "value"),
    [
        (PERFECT, False, 1),
        (PERFECT, True, 0),
        (f"<think>hm</think>\n{PERFECT}", True, 1),
        (PERFECT.removeprefix("<answer>").removesuffix("</answer>"), False, 0),
        (PERFECT + " ok?", False, 0),
        (answer([], []), False, 0),
        (answer([("man.1", MAN)], []), False, 1),
        (answer([("man.1", MAN)], [RIDING]), False, 0),  # dangling: something was dropped
    ],
)
def test_format(text: str, require_thinking: bool, value: int) -> None:
    got = reward(text, require_thinking=require_thinking)
    assert (got.status, got.breakdown["format"]) == ("ok", value)


def test_names_are_normalised_on_both_sides() -> None:
    reference = graph(
        [("Traffic_Light.1", MAN), ("man.1", HORSE)], [("man.1", "In-Front of", "Traffic_Light.1")]
    )
    text = answer(
        [("traffic light.7", MAN), ("MAN.3", HORSE)], [("man.3", "in front_of", "traffic-light.7")]
    )
    assert reward(text, reference=reference).total == pytest.approx(10)


def test_a_dangling_id_costs_its_triplet_only() -> None:
    text = answer([("man.1", MAN), ("horse.1", HORSE)], [RIDING, NEAR, ("man.1", "on", "cat.9")])
    got = reward(text)
    assert got.dropped == {"dangling_relationship": 1}
    assert got.total == pytest.approx(9)  # all but format


def test_an_inverted_box_earns_nothing() -> None:
    text = answer([("man.1", [50, 100, 0, 0]), ("horse.1", [100, 100, 50, 0])], [RIDING, NEAR])
    assert reward(text).total == 0


@pytest.mark.parametrize(
    ("text", "status", "truncated"),
    [
        ("", "no_answer", False),
        ("<answer>{", "invalid_json", True),
        ("<answer>[1]</answer>", "schema_violation", False),
        ("<answer>" + "[" * 99 + "</answer>", "too_large", False),
    ],
)
def test_what_does_not_parse_gets_the_lowest_reward(
    text: str, status: str, truncated: bool
) -> None:
    got = reward(text)
    assert (got.total, got.status, got.truncated) == (0, status, truncated)
    assert got.breakdown == dict.fromkeys(SOFT.terms, 0.0)
    assert got.matched == Matched(objects=0, relationships=0)


def test_one_bad_completion_leaves_the_others_alone() -> None:
    rewards = score_group(group("junk", PERFECT, "<answer>{"), SOFT).rewards
    assert [round(r.total, 6) for r in rewards] == [0, 10, 0]


def test_an_empty_reference_pays_for_format_only() -> None:
    nothing = graph([], [])
    assert reward(PERFECT, reference=nothing).breakdown == {
        "format": 1,
        "node_category": 0,
        "node_box": 0,
        "edge": 0,
    }
    assert reward(PERFECT, HARD, reference=nothing).total == 1


def test_a_wrong_reference_is_cleaned_like_a_prediction() -> None:
    reference = graph(
        [("man.1", MAN), ("man.1", HORSE), ("horse.1", HORSE), ("dog.1", [9, 9, 1, 1])],
        [RIDING, NEAR, RIDING, ("man.1", "on", "cat.5"), ("dog.1", "on", "man.1")],
    )
    clean, dropped = reference_graph(group(PERFECT, reference=reference))
    assert [o.id for o in clean.objects] == ["man.1", "horse.1"]
    assert dropped == {
        "duplicate_id": 1,
        "inverted_box": 1,
        "repeated_triplet": 1,
        "dangling_relationship": 2,
    }
    assert reward(PERFECT, reference=reference).total == pytest.approx(10)
