"""What holds for every reward, whatever the graphs."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_service.rubrics import RUBRICS, Rubric
from reward_service.scoring import score_group
from services.schemas.rewards import RewardGroup

Graph = dict[str, list[dict[str, Any]]]
RUBRIC = st.sampled_from(list(RUBRICS.values()))


@st.composite
def boxes(draw: st.DrawFn) -> list[int]:
    x1, y1 = draw(st.integers(0, 90)), draw(st.integers(0, 90))
    return [x1, y1, x1 + draw(st.integers(1, 60)), y1 + draw(st.integers(1, 60))]


@st.composite
def graphs(draw: st.DrawFn, min_edges: int = 0) -> Graph:
    names = draw(st.lists(st.sampled_from(["man", "horse", "hat"]), min_size=1, max_size=6))
    objects = [{"id": f"{name}.{i}", "bbox": draw(boxes())} for i, name in enumerate(names)]
    ids = st.sampled_from([item["id"] for item in objects])
    edge = st.fixed_dictionaries(
        {"subject": ids, "predicate": st.sampled_from(["on", "near"]), "object": ids}
    )
    return {
        "objects": objects,
        "relationships": draw(st.lists(edge, min_size=min_edges, max_size=6)),
    }


def total(reference: Graph, prediction: Graph, rubric: Rubric) -> float:
    group = RewardGroup.model_validate(
        {
            "group_id": "g",
            "image_size": (100, 80),
            "box_space": "pixels:100x80",
            "reference": reference,
            "completions": [f"<answer>{json.dumps(prediction)}</answer>"],
        }
    )
    reward = score_group(group, rubric).rewards[0]
    assert all(0 <= value <= 1 for value in reward.breakdown.values())
    assert reward.matched.objects <= len(reference["objects"])
    assert reward.matched.relationships <= len(reference["relationships"])
    return reward.total


@given(graphs(), graphs(), RUBRIC)
def test_rewards_are_bounded(reference: Graph, prediction: Graph, rubric: Rubric) -> None:
    assert 0 <= total(reference, prediction, rubric) <= sum(rubric.terms.values())


@given(graphs(), graphs(), RUBRIC, st.randoms())
def test_the_order_of_writing_does_not_matter(
    reference: Graph, prediction: Graph, rubric: Rubric, rng: random.Random
) -> None:
    shuffled = {key: rng.sample(items, len(items)) for key, items in prediction.items()}
    expected = total(reference, prediction, rubric)
    assert total(reference, shuffled, rubric) == pytest.approx(expected)


@given(graphs(min_edges=1), RUBRIC)
def test_the_reference_earns_the_maximum(reference: Graph, rubric: Rubric) -> None:
    edges = reference["relationships"]
    unique = [edge for i, edge in enumerate(edges) if edge not in edges[:i]]
    prediction = reference | {"relationships": unique}
    assert total(reference, prediction, rubric) == pytest.approx(sum(rubric.terms.values()))


@given(graphs(min_edges=1), RUBRIC, st.data())
def test_leaving_a_triplet_out_never_pays(
    reference: Graph, rubric: Rubric, data: st.DataObject
) -> None:
    edges = reference["relationships"]
    unique = [edge for i, edge in enumerate(edges) if edge not in edges[:i]]
    index = data.draw(st.integers(0, len(unique) - 1))
    fewer = reference | {"relationships": unique[:index] + unique[index + 1 :]}
    assert total(reference, fewer, rubric) <= sum(rubric.terms.values()) - 5 / len(unique) + 1e-9
