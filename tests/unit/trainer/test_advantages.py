import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.schemas.groups import TrainGroup
from services.schemas.rewards import Credit, Matched, Reward
from services.settings.training import AlgorithmSettings
from tests.train_groups import completion, train_group
from trainer.algorithms.advantages import EPSILON, group_relative, overlong_punishment
from trainer.collection.advantages import has_zero_variance, with_advantages

WEIGHTS = {"format": 1.0, "edge": 5.0}


def reward(form: float, edge: float) -> Reward:
    return Reward(
        total=WEIGHTS["format"] * form + WEIGHTS["edge"] * edge,
        status="ok",
        breakdown={"format": form, "edge": edge},
        matched=Matched(objects=0, relationships=0),
    )


def group(rewards: list[Reward], lengths: list[int]) -> TrainGroup:
    made = train_group([1], [completion([5] * n) for n in lengths])
    return made.model_copy(update={"rewards": rewards, "advantages": []})


def advantages(algorithm: dict[str, Any], *groups: TrainGroup) -> list[list[float]]:
    chosen = AlgorithmSettings.model_validate(algorithm)
    return [g.advantages for g in with_advantages(groups, chosen, WEIGHTS, max_tokens=10)]


def test_only_what_is_compared_makes_a_spread() -> None:
    same_total = [reward(1.0, 0.0), reward(0.0, 0.2)]
    assert has_zero_variance([reward(1.0, 0.3), reward(1.0, 0.3)], "terms")
    assert has_zero_variance(same_total)
    assert not has_zero_variance(same_total, "terms")
    assert not has_zero_variance([reward(1.0, 0.3), reward(1.0, 0.31)])


def test_elements_of_equal_totals_make_a_spread() -> None:
    early, late = (
        reward(1.0, 0.3).model_copy(
            update={"credit": Credit(num_objects=2, spans=[(0, 9), (9, 18)], increments=parts)}
        )
        for parts in ([1.3, 0.0], [0.0, 1.3])
    )
    assert has_zero_variance([early, early])
    assert not has_zero_variance([early, late])


def test_a_total_drowns_the_term_that_terms_keep() -> None:
    """Both groups differ by 1 in format; in the second, edge differs the other way."""
    groups = (
        group([reward(0, 0), reward(1, 0)], [1, 1]),
        group([reward(0, 1), reward(1, 0)], [1, 1]),
    )
    one = 1 / math.sqrt(2)  # of two values, in standard deviations
    by_total = advantages({}, *groups)
    assert by_total[0] == pytest.approx([-one, one], rel=1e-3)
    assert by_total[1] == pytest.approx([one, -one], rel=1e-3)
    by_term = advantages({"normalise": "terms", "advantage_scale": "none"}, *groups)
    assert by_term[0] == pytest.approx([-one, one], rel=1e-3)
    assert by_term[1] == pytest.approx([4 * one, -4 * one], rel=1e-3)


def test_the_batch_has_one_standard_deviation() -> None:
    groups = (
        group([reward(0, 0), reward(0, 1)], [1, 1]),
        group([reward(1, 0), reward(0, 0)], [1, 1]),
    )
    found = advantages({"advantage_scale": "batch"}, *groups)
    std = torch.tensor([0.0, 5.0, 1.0, 0.0]).std().item() + EPSILON
    assert found[0] == pytest.approx([-2.5 / std, 2.5 / std])
    assert found[1] == pytest.approx([0.5 / std, -0.5 / std])


def test_overlong_completions_are_punished_as_in_dapo() -> None:
    lengths = torch.tensor([1, 6, 7, 8, 10])
    punishment = overlong_punishment(lengths, max_tokens=10, buffer=4)
    assert punishment.tolist() == [0.0, 0.0, -0.25, -0.5, -1.0]
    settings = {"overlong_buffer": 4, "overlong_penalty": 2.0, "advantage_scale": "none"}
    equal = group([reward(1, 0), reward(1, 0)], [6, 10])
    assert advantages(settings, equal) == [[1.0, -1.0]]
    as_term = advantages(settings | {"normalise": "terms"}, equal)[0]
    assert as_term == pytest.approx([math.sqrt(2), -math.sqrt(2)], rel=1e-3)


@given(
    st.lists(st.floats(0, 10, width=32), min_size=2, max_size=9),
    st.sampled_from(["group", "batch", "none"]),
)
def test_advantages_keep_the_order_and_add_up_to_nothing(values: list[float], scale: Any) -> None:
    rewards = torch.tensor([values, values], dtype=torch.float64)
    found = group_relative(rewards, scale)[0]
    assert abs(found.sum().item()) < 1e-9
    assert torch.equal(found[rewards[0].argsort()], found.sort().values)
    constant = torch.full((1, len(values)), values[0], dtype=torch.float64)
    assert group_relative(constant, scale).tolist() == [[0.0] * len(values)]
