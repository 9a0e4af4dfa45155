import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.schemas.groups import TrainGroup
from tests.train_groups import random_group
from trainer.batches.micro_batches import (
    PackedRow,
    RankPlan,
    num_tokens,
    plan_metrics,
    plan_step,
)

RNG = random.Random(0)


def batch(*groups: tuple[int, list[int]]) -> list[TrainGroup]:
    """Groups by the lengths of their prompts and completions."""
    return [
        random_group(RNG, prompt=prompt, lengths=lengths, index=index)
        for index, (prompt, lengths) in enumerate(groups)
    ]


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[TrainGroup], int, int]:
    """A batch, a number of ranks, and a budget."""
    ranks, each, size = (draw(st.integers(1, n)) for n in (4, 3, 5))
    lengths = st.lists(st.integers(1, 60), min_size=size, max_size=size)
    groups = draw(
        st.lists(
            st.tuples(st.integers(1, 80), lengths), min_size=ranks * each, max_size=ranks * each
        )
    )
    return batch(*groups), ranks, draw(st.integers(8, 600))


def tokens(row: PackedRow, groups: list[TrainGroup]) -> int:
    rollout = groups[row.group].rollout
    return len(rollout.prompt_token_ids) + sum(
        len(rollout.completions[i].token_ids) for i in row.completions
    )


@given(steps())
def test_every_completion_is_trained_once_within_the_budget(
    step: tuple[list[TrainGroup], int, int],
) -> None:
    groups, num_ranks, max_tokens = step
    plans = plan_step(groups, num_ranks=num_ranks, max_tokens=max_tokens)
    assert len(plans) == num_ranks
    assert sorted(g for plan in plans for g in plan.groups) == list(range(len(groups)))
    for plan in plans:
        assert len(plan.groups) == len(groups) // num_ranks
        assert plan.groups == sorted(plan.groups)
        rows = [row for rows in plan.micro_batches for row in rows]
        assert sorted((row.group, i) for row in rows for i in row.completions) == [
            (g, i) for g in plan.groups for i in range(len(groups[g].rollout.completions))
        ]
        assert all(row.length == tokens(row, groups) for row in rows)
        for found in plan.micro_batches:
            alone = len(found) == 1 and len(found[0].completions) == 1
            assert alone or num_tokens(found) <= max_tokens


@given(steps())
def test_all_ranks_have_as_many_micro_batches(step: tuple[list[TrainGroup], int, int]) -> None:
    groups, num_ranks, max_tokens = step
    plans = plan_step(groups, num_ranks=num_ranks, max_tokens=max_tokens)
    assert len({len(plan.micro_batches) for plan in plans}) == 1
    assert plans == plan_step(groups, num_ranks=num_ranks, max_tokens=max_tokens)


@given(steps(), st.integers(1, 3))
def test_mini_batches_are_the_parts_of_a_batch_one_after_another(
    step: tuple[list[TrainGroup], int, int], num_mini_batches: int
) -> None:
    """Each is planned as a batch of its own, so that each has as many passes on every rank."""
    part, num_ranks, max_tokens = step
    groups = part * num_mini_batches
    sizes = {"num_ranks": num_ranks, "max_tokens": max_tokens}
    plans = plan_step(groups, num_mini_batches=num_mini_batches, **sizes)
    alone = plan_step(part, **sizes)
    for plan, wanted in zip(plans, alone, strict=True):
        places = [place for i in range(num_mini_batches) for place in wanted.groups]
        assert [place % len(part) for place in plan.groups] == places
        assert plan.groups == sorted(plan.groups)
        for number, mini_batch in enumerate(plan.mini_batches):
            start = number * len(part)
            moved = [
                [dataclasses.replace(row, group=row.group + start) for row in rows]
                for rows in wanted.micro_batches
            ]
            assert mini_batch == moved


def only(groups: list[TrainGroup], max_tokens: int) -> RankPlan:
    (plan,) = plan_step(groups, num_ranks=1, max_tokens=max_tokens)
    return plan


def test_a_group_that_fits_is_one_row() -> None:
    plan = only(batch((100, [10, 20, 30, 40])), 200)
    assert plan.micro_batches == [[PackedRow(group=0, completions=(0, 1, 2, 3), length=200)]]


def test_a_group_over_the_budget_is_cut_evenly() -> None:
    plan = only(batch((100, [10, 20, 30, 40])), 199)
    rows = [row for rows in plan.micro_batches for row in rows]
    assert rows == [
        PackedRow(group=0, completions=(0, 3), length=150),
        PackedRow(group=0, completions=(1, 2), length=150),
    ]


def test_a_completion_over_the_budget_stands_alone() -> None:
    plan = only(batch((10, [500, 3])), 64)
    assert [[row.completions for row in rows] for rows in plan.micro_batches] == [[(0,)], [(1,)]]


def test_short_rows_fill_what_long_ones_leave() -> None:
    groups = batch((10, [2, 4]), (60, [30, 6]), (10, [4, 3]), (60, [6, 30]))
    plan = only(groups, 113)
    assert [[row.length for row in rows] for rows in plan.micro_batches] == [[96, 17], [96, 16]]
    assert plan_metrics([plan]) == pytest.approx(
        {"num_micro_batches": 2, "num_model_tokens": 225, "rank_imbalance": 0.0}
    )


def test_ranks_get_equal_tokens() -> None:
    groups = batch(*((20, [n, n]) for n in (90, 10, 40, 60)))
    plans = plan_step(groups, num_ranks=2, max_tokens=10_000)
    assert [plan.groups for plan in plans] == [[0, 1], [2, 3]]
    assert plan_metrics(plans)["rank_imbalance"] == 0


def test_metrics_count_imbalance() -> None:
    groups = batch((10, [3, 3]), (10, [30, 24]))  # rows of 16 and 64 tokens
    plans = plan_step(groups, num_ranks=2, max_tokens=10_000)
    assert plan_metrics(plans)["rank_imbalance"] == pytest.approx(64 / 40 - 1)
