"""Advantages of scored groups, and groups that have none because all rewards are equal."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from services.schemas.groups import TrainGroup
from services.schemas.rewards import Credit, Reward
from services.settings.training import AlgorithmSettings
from trainer.algorithms.advantages import group_relative, overlong_punishment, term_relative
from trainer.algorithms.element_credit import element_relative

EQUAL_WITHIN = 1e-6
"""A term counts things: a smaller difference is its rounding, which teaches nothing."""


def has_zero_variance(
    rewards: Sequence[Reward], normalise: Literal["total", "terms"] = "total"
) -> bool:
    """Whether a group's completions are all equal in what they are compared by.

    DAPO (arXiv 2503.14476), section 3.2, keeps groups whose rewards are not all equal. The
    punishment of length does not count, as in DAPO: it filters by accuracy. Elements count where
    they have credit: of equal totals, one may have come early.

    Args:
        rewards: One group's.
        normalise: `algorithm.normalise`: with "terms", all of the terms are equal.
    """
    if len({_elements(reward) for reward in rewards}) > 1:
        return False
    if normalise == "total":
        return _are_equal([reward.total for reward in rewards])
    return all(_are_equal([r.breakdown[term] for r in rewards]) for term in rewards[0].breakdown)


def _elements(reward: Reward) -> tuple[float, ...] | None:
    credit = reward.credit
    return (credit.num_objects, *credit.increments) if credit else None


def with_advantages(
    groups: Sequence[TrainGroup],
    algorithm: AlgorithmSettings,
    weights: Mapping[str, float],
    *,
    max_tokens: int,
) -> list[TrainGroup]:
    """A whole step's groups with their advantages.

    The punishment of length is taken from the total; where terms are compared one by one, it is a
    term of its own, with `overlong_penalty` as its weight.

    Args:
        groups: All of one size.
        algorithm: The run's.
        weights: What each term of the rubric weighs; looked at with `normalise = "terms"`.
        max_tokens: `sampling.max_tokens`.
    """
    punishment = _punishment(groups, algorithm, max_tokens)
    if algorithm.normalise == "total":
        totals = _tensor([[r.total for r in group.rewards] for group in groups])
        if punishment is not None:
            totals = totals + algorithm.overlong_penalty * punishment
        if algorithm.credit == "element":
            return _with_element_advantages(groups, totals, algorithm)
        advantages = group_relative(totals, algorithm.advantage_scale)
    else:
        names = list(groups[0].rewards[0].breakdown)
        terms = _tensor([[[r.breakdown[n] for n in names] for r in g.rewards] for g in groups])
        scales = [weights[name] for name in names]
        if punishment is not None:
            terms = torch.cat([terms, punishment.unsqueeze(2)], dim=2)
            scales.append(algorithm.overlong_penalty)
        advantages = term_relative(terms, _tensor(scales), algorithm.advantage_scale)
    return [
        group.model_copy(update={"advantages": row})
        for group, row in zip(groups, advantages.tolist(), strict=True)
    ]


def _with_element_advantages(
    groups: Sequence[TrainGroup], totals: Tensor, algorithm: AlgorithmSettings
) -> list[TrainGroup]:
    """A completion's own advantage is that of its first token."""
    credits = [[_credit(reward) for reward in group.rewards] for group in groups]
    counts = [[len(credit.increments) for credit in group] for group in credits]
    most = max(map(max, counts))
    padded = [[[*c.increments, *[0.0] * (most - len(c.increments))] for c in g] for g in credits]
    advantages = element_relative(
        totals,
        _tensor(padded),
        torch.tensor([[credit.num_objects for credit in group] for group in credits]),
        torch.tensor(counts),
        scale=algorithm.advantage_scale,
        decay=algorithm.credit_lambda,
    )
    return [
        group.model_copy(
            update={
                "advantages": [row[0] for row in rows],
                "element_advantages": [
                    row[: count + 1] for row, count in zip(rows, of_group, strict=True)
                ],
            }
        )
        for group, rows, of_group in zip(groups, advantages.tolist(), counts, strict=True)
    ]


def _credit(reward: Reward) -> Credit:
    assert reward.credit is not None, "group_scoring asks for it, and refuses rewards without"
    return reward.credit


def _punishment(
    groups: Sequence[TrainGroup], algorithm: AlgorithmSettings, max_tokens: int
) -> Tensor | None:
    """None where no length is punished."""
    if not algorithm.overlong_buffer:
        return None
    lengths = _tensor([[len(c.token_ids) for c in g.rollout.completions] for g in groups])
    return overlong_punishment(lengths, max_tokens=max_tokens, buffer=algorithm.overlong_buffer)


def _tensor(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _are_equal(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= EQUAL_WITHIN
