"""Every term on numbers worked out by hand, and what a wrong reference or completion does."""

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from reward_service.scoring import RewardScorer, make_scorer, reference_columns
from services.errors import InvalidInputError
from services.schemas.rewards import Matched, Reward, RewardGroup, Task

SOFT, HARD, BALANCED = make_scorer("r1-soft"), make_scorer("r1-hard"), make_scorer("balanced")
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


def reward(text: str, scorer: RewardScorer = SOFT, **more: Any) -> Reward:
    return scorer.score([group(text, **more)])[0].rewards[0]


def term(name: str, text: str, task: Task = "sgg", more: dict[str, Any] | None = None) -> float:
    """One term, alone in a rubric where it can be."""
    graph_term = {"format": 1} if name != "format" else {}
    needed = {"edge": 1} if task == "cls" else {"node_box": 1}
    rubric = {"terms": {name: 1} | graph_term | needed} | (more or {}).pop("rubric", {})
    return reward(text, make_scorer(rubric, task), **(more or {})).breakdown[name]


PERFECT = answer([("man.1", MAN), ("horse.1", HORSE)], [RIDING, NEAR])


def test_the_reference_earns_everything() -> None:
    best = reward(PERFECT)
    assert best.total == pytest.approx(10)
    assert best.breakdown == pytest.approx(dict.fromkeys(SOFT.weights, 1.0))
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


def test_one_triplet_serves_several_reference_triplets_in_edge_hard_only() -> None:
    """Two men ride in the same place. `r1-hard` pays one answer for both, as R1-SGG's does."""
    reference = graph(
        [("man.1", MAN), ("man.2", MAN), ("horse.1", HORSE)],
        [RIDING, ("man.2", "riding", "horse.1")],
    )
    text = answer([("man.1", MAN), ("horse.1", HORSE)], [RIDING])
    more = {"reference": reference}
    assert term("edge_hard", text, more=dict(more)) == 1
    assert term("edge_hard_relaxed", text, more=dict(more)) == 1
    assert term("edge", text, more=dict(more)) == pytest.approx(1 / 2)
    assert term("triplet_f1", text, more=dict(more)) == pytest.approx(2 / 3)
    assert reward(text, HARD, reference=reference).matched.relationships == 1


def test_triplet_f1_by_hand() -> None:
    objects: Objects = [("man.1", MAN), ("horse.1", HORSE)]
    junk = ("horse.1", "eating", "man.1")
    text = answer(objects, [RIDING, ("man.1", "on", "horse.1"), junk])
    precision, recall = 1 / 3, 1 / 2
    f1 = 2 * precision * recall / (precision + recall)
    assert term("triplet_f1", text) == pytest.approx(f1)
    f2 = 5 * precision * recall / (4 * precision + recall)
    assert term("triplet_f1", text, more={"rubric": {"beta": 2}}) == pytest.approx(f2)


def test_precision_forgives_triplets_about_what_nobody_annotated() -> None:
    elsewhere = [60, 0, 70, 10]  # overlaps the horse, far below IoU 0.5
    objects: Objects = [("man.1", MAN), ("horse.1", HORSE), ("bird.1", elsewhere)]
    text = answer(objects, [RIDING, NEAR, ("bird.1", "above", "horse.1")])
    assert term("triplet_f1", text) == 1
    named_wrong: Objects = [("man.1", MAN), ("horse.1", HORSE), ("dog.1", HORSE)]
    text = answer(named_wrong, [RIDING, NEAR, ("man.1", "riding", "dog.1")])
    assert term("triplet_f1", text) == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))


def test_object_precision_counts_every_predicted_object() -> None:
    objects: Objects = [("man.1", MAN), ("dog.1", HORSE), ("hat.1", [0, 0, 9, 9])]
    assert term("object_precision", answer(objects, [])) == pytest.approx(1 / 3)
    assert term("object_precision", answer([], [])) == 0


def test_predicate_balanced_weighs_rare_predicates_more() -> None:
    objects: Objects = [("man.1", MAN), ("horse.1", HORSE)]
    rubric = {"rubric": {"predicate_frequency": {"Near": 30, "on": 10}}}
    # `riding` is not in the table and counts like the rarest in it: 1/10 against 1/30.
    near, riding = answer(objects, [NEAR]), answer(objects, [RIDING])
    assert term("predicate_balanced", near, more=dict(rubric)) == pytest.approx(1 / 4)
    assert term("predicate_balanced", riding, more=dict(rubric)) == pytest.approx(3 / 4)
    assert term("predicate_balanced", PERFECT, more=dict(rubric)) == 1


@pytest.mark.parametrize(("tokens", "value"), [(0, 1), (100, 1), (150, 0.5), (200, 0), (999, 0)])
def test_length_penalty(tokens: int, value: float) -> None:
    more: dict[str, Any] = {"rubric": {"length": {"start": 100, "end": 200}}}
    assert term("length_penalty", PERFECT, more=more | {"num_tokens": [tokens]}) == value


def test_length_penalty_can_count_characters() -> None:
    length = {"unit": "characters", "start": 0, "end": 2 * len(PERFECT)}
    assert term("length_penalty", PERFECT, more={"rubric": {"length": length}}) == 0.5


def test_length_penalty_asks_for_tokens() -> None:
    with pytest.raises(InvalidInputError, match="num_tokens"):
        term("length_penalty", PERFECT, more={"rubric": {"length": {"start": 1, "end": 2}}})


def test_a_graph_without_tags_may_earn_half_of_format() -> None:
    bare = PERFECT.removeprefix("<answer>").removesuffix("</answer>")
    half = {"format_partial_credit": True}
    assert term("format", bare, more={"rubric": dict(half)}) == 0.5
    assert term("format", PERFECT, more={"rubric": dict(half)}) == 1
    dangling = answer([("man.1", MAN)], [RIDING])
    assert term("format", dangling, more={"rubric": dict(half)}) == 0


def test_detection_looks_at_objects_only() -> None:
    scorer = make_scorer("balanced", "det")
    assert set(scorer.weights) == {"format", "node_category", "node_box", "object_precision"}
    only_objects = json.dumps({"objects": [{"id": "man.1", "bbox": MAN}]})
    got = reward(f"<answer>{only_objects}</answer>", scorer)
    assert (got.status, got.breakdown["format"], got.breakdown["node_category"]) == ("ok", 1, 0.5)
    ignored = reward(answer([("man.1", MAN)], [RIDING, RIDING]), scorer)
    assert (ignored.dropped, ignored.total) == ({}, got.total)


def test_cls_pairs_triplets_of_names_one_to_one() -> None:
    reference = graph([], [RIDING, ("man.2", "riding", "horse.2"), NEAR])

    def names(*edges: Edge) -> str:
        found = graph([], edges)["relationships"]
        return f"<answer>{json.dumps({'relationships': found})}</answer>"

    more = {"reference": reference}
    one = names(("man", "riding", "horse"))
    assert term("edge", one, "cls", dict(more)) == pytest.approx(1 / 3)
    assert term("edge_hard", one, "cls", dict(more)) == pytest.approx(1 / 3)
    assert term("triplet_f1", one, "cls", dict(more)) == pytest.approx(2 * (1 / 3) / (1 + 1 / 3))
    all_three = names(("man.1", "riding", "horse.1"), ("man.9", "riding", "horse.9"), NEAR)
    best = reward(all_three, make_scorer("balanced", "cls"), **more)
    assert best.breakdown == {"format": 1, "triplet_f1": 1}
    assert best.matched == Matched(objects=0, relationships=3)


@pytest.mark.parametrize(("rubric", "task"), [("r1-hard", "det"), ("r1-relaxed", "cls")])
def test_a_rubric_that_says_nothing_about_a_task_is_refused(rubric: str, task: Task) -> None:
    with pytest.raises(InvalidInputError, match="no term about the graph"):
        make_scorer(rubric, task)


@pytest.mark.parametrize(
    ("text", "require_thinking", "value"),
    [
        (PERFECT, False, 1),
        (PERFECT, True, 0),
        (f"<think>hm</think>\n{PERFECT}", True, 1),
        (f"hm\n</think>\n{PERFECT}", True, 1),  # the chat template opened it
        (f"hm</think>hm</think>{PERFECT}", False, 1),
        (f"Sure! <think>hm</think>{PERFECT}", True, 0),
        (f"hm</think> Here: {PERFECT}", True, 0),
        (PERFECT.replace("<answer>", "<answer>json\n"), False, 1),
        (f"{PERFECT}\n```", False, 0),
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
    assert got.breakdown == dict.fromkeys(SOFT.weights, 0.0)
    assert got.matched == Matched(objects=0, relationships=0)


def test_one_bad_completion_leaves_the_others_alone() -> None:
    rewards = SOFT.score([group("junk", PERFECT, "<answer>{")])[0].rewards
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
    wrong = group(PERFECT, reference=reference)
    clean, dropped = reference_columns(wrong)
    assert clean.ids == ["man.1", "horse.1"]
    assert dropped == {
        "duplicate_id": 1,
        "inverted_box": 1,
        "repeated_triplet": 1,
        "dangling_relationship": 2,
    }
    assert reward(PERFECT, reference=reference).total == pytest.approx(10)


def test_a_reward_does_not_depend_on_what_stands_beside_it() -> None:
    texts = [PERFECT, "junk", answer([("man.1", [1, 2, 51, 93])], []), answer([], [])]
    alone = [BALANCED.score([group(text)])[0].rewards[0] for text in texts]
    together = BALANCED.score([group(*texts), group(*texts[::-1]), group(texts[2])])
    assert together[0].rewards == alone
    assert together[1].rewards == alone[::-1]
    assert together[2].rewards == [alone[2]]


def test_large_batches_are_scored_in_parts_with_the_same_result() -> None:
    rng = random.Random(0)

    def big() -> str:
        corners = [(rng.randrange(50), rng.randrange(50)) for _ in range(60)]
        objects = [(f"man.{i}", (x, y, x + 20, y + 30)) for i, (x, y) in enumerate(corners)]
        return answer(objects, [(f"man.{i}", "near", f"man.{i + 1}") for i in range(59)])

    texts = [big() for _ in range(20)]
    reference = json.loads(texts[0].removeprefix("<answer>").removesuffix("</answer>"))
    groups = [group(*texts[i : i + 5], reference=reference) for i in range(0, 20, 5)]
    together = [r for scored in BALANCED.score(groups) for r in scored.rewards]
    assert together == [reward(text, BALANCED, reference=reference) for text in texts]
    assert together[0].total == pytest.approx(BALANCED.max_total)
