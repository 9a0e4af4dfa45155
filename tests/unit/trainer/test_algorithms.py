import math
from typing import Literal

import pytest
import torch
from transformers import get_scheduler

from services.settings.training import AlgorithmSettings, TrainerSettings
from trainer.algorithms.advantages import EPSILON, group_relative
from trainer.algorithms.losses import policy_loss
from trainer.algorithms.schedule import learning_rate


def test_advantages_by_hand() -> None:
    advantages = group_relative(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), "group")
    expected = 1 / (math.sqrt(2) + EPSILON)
    torch.testing.assert_close(advantages, torch.tensor([[-expected, expected], [0.0, 0.0]]))


def test_advantages_without_scaling_only_centre() -> None:
    advantages = group_relative(torch.tensor([[1.0, 3.0, 8.0]]), "none")
    torch.testing.assert_close(advantages, torch.tensor([[-3.0, -1.0, 4.0]]))


def test_loss_by_hand() -> None:
    """Two completions; the first token is clipped from above, the last from below."""
    ratios = torch.tensor([[1.5, 1.1], [0.5, 123.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    weights = mask * torch.tensor([[1 / 4], [1 / 2]])
    out = policy_loss(
        AlgorithmSettings(clip_high=0.28),
        torch.log(ratios),
        torch.zeros(2, 2),
        torch.tensor([2.0, -1.0]),
        mask,
        weights,
        entropies=torch.zeros(2, 2),
    )
    first = (min(1.5 * 2, 1.28 * 2) + min(1.1 * 2, 1.1 * 2)) / 2
    second = min(0.5 * -1, 0.8 * -1)
    assert out.loss.item() == pytest.approx(-(first + second) / 2, abs=1e-6)
    clipped, tokens = out.stats.sums["clip_fraction"]
    assert (clipped.item(), tokens.item()) == (2, 3)
    total, _ = out.stats.sums["ratio_mean"]
    assert total.item() == pytest.approx(1.5 + 1.1 + 0.5, abs=1e-6)


def test_clipped_tokens_have_no_gradient() -> None:
    policy = torch.log(torch.tensor([[1.5, 1.1]])).requires_grad_()
    out = policy_loss(
        AlgorithmSettings(),
        policy,
        torch.zeros(1, 2),
        torch.tensor([1.0]),
        torch.ones(1, 2),
        torch.full((1, 2), 1 / 2),
        entropies=torch.zeros(1, 2),
    )
    out.loss.backward()
    assert policy.grad is not None
    assert policy.grad[0, 0].item() == 0.0
    assert policy.grad[0, 1].item() == pytest.approx(-1.1 / 2, abs=1e-6)


def test_learning_rate_rises_then_falls_to_its_last_share() -> None:
    trainer = TrainerSettings(learning_rate=1.0, warmup_steps=4, num_steps=12, lr_schedule="linear")
    rates = [learning_rate(trainer, step, 12) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[-1] == 1 / 8
    assert rates[4:] == sorted(rates[4:], reverse=True)
    flat = trainer.model_copy(update={"lr_schedule": "constant"})
    assert [learning_rate(flat, step, 12) for step in range(4, 12)] == [1.0] * 8


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_learning_rate_is_that_of_transformers(
    shape: Literal["constant", "linear", "cosine"],
) -> None:
    """Deviation: its warm-up begins at 0, with a step that changes nothing; ours a step later."""
    trainer = TrainerSettings(learning_rate=1.0, warmup_steps=4, num_steps=12, lr_schedule=shape)
    ours = [learning_rate(trainer, step, 12) for step in range(12)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if shape == "constant" else shape
    schedule = get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=12)
    theirs = []
    for _ in range(12):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert ours[4:] == pytest.approx(theirs[4:])
    assert ours[:4] == pytest.approx(theirs[1:5])
