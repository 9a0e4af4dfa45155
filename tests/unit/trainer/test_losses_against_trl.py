"""TRL computes the same losses, gradients, advantages and metrics from the same tensors."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from services.settings.training import AlgorithmSettings
from tests.trl_oracle import StepTensors, TrlOracle
from trainer.algorithms.advantages import Scale, group_relative, term_relative
from trainer.algorithms.losses import LossOutput, policy_loss
from trainer.algorithms.weighting import completion_weights

MAX_TOKENS, LONGEST = 9, 8
LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo"]
CORRECTIONS: list[dict[str, Any]] = [
    {"correction": kind, "correction_level": level, "correction_cap": 1.3}
    for kind, level in product(("truncate", "mask"), ("token", "sequence"))
]
RATIOS: list[dict[str, Any]] = [
    {"old_logprobs": "sampler"},
    {"old_logprobs": "trainer"},
    *({"old_logprobs": "trainer", **correction} for correction in CORRECTIONS),
]
METRICS = {
    "entropy": "entropy",
    "ref_kl": "kl",
    "clip_fraction": "clip_ratio/region_mean",
    "clip_low_fraction": "clip_ratio/low_mean",
    "clip_high_fraction": "clip_ratio/high_mean",
    "correction_mean": "sampling/importance_sampling_ratio/mean",
    "mismatch_max": "sampling/sampling_logp_difference/max",
}
"""Our names and TRL's."""


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def make_step(seed: int) -> tuple[StepTensors, Tensor]:
    """Three groups of four, with gaps wide enough to be clipped and capped; and the loss mask."""
    torch.manual_seed(seed)
    lengths = torch.randint(1, LONGEST, (12,))
    lengths[7] = LONGEST
    mask = (torch.arange(LONGEST) < lengths.unsqueeze(1)).double()
    policy = -torch.rand(mask.shape)
    step = StepTensors(
        policy_logprobs=(policy * mask).requires_grad_(),
        rollout_logprobs=(policy + 0.3 * torch.randn(mask.shape)) * mask,
        ref_logprobs=(policy + 0.3 * torch.randn(mask.shape)) * mask,
        entropies=torch.rand(mask.shape) * mask,
        lengths=lengths.tolist(),
        truncated=[i % 5 == 1 for i in range(12)],
        terms=torch.rand(12, 3),
        term_weights=torch.tensor([1.0, 2.0, 5.0]),
        group_size=4,
    )
    return step, mask


def trl_config(algorithm: AlgorithmSettings) -> dict[str, Any]:
    """What TRL calls these settings."""
    corrected = algorithm.correction != "none"
    return {
        "loss_type": "grpo" if algorithm.loss == "gspo" else algorithm.loss,
        "importance_sampling_level": "sequence" if algorithm.loss == "gspo" else "token",
        "epsilon": algorithm.clip_low,
        "epsilon_high": algorithm.clip_high + (algorithm.loss == "cispo"),
        "delta": algorithm.delta,
        "sapo_temperature_pos": algorithm.sapo_temperature_pos,
        "sapo_temperature_neg": algorithm.sapo_temperature_neg,
        "num_iterations": algorithm.num_iterations,
        "steps_per_generation": algorithm.num_mini_batches,
        "beta": algorithm.beta,
        "mask_truncated_completions": algorithm.mask_truncated,
        "max_completion_length": MAX_TOKENS,
        "use_vllm": corrected,
        "vllm_importance_sampling_correction": corrected,
        "vllm_importance_sampling_mode": f"{algorithm.correction_level}_{algorithm.correction}",
        "vllm_importance_sampling_clip_max": algorithm.correction_cap,
    }


def our_loss(
    algorithm: AlgorithmSettings, step: StepTensors, mask: Tensor, advantages: Tensor
) -> LossOutput:
    weights = completion_weights(algorithm, step.lengths, step.truncated, max_tokens=MAX_TOKENS)
    return policy_loss(
        algorithm,
        step.policy_logprobs,
        step.rollout_logprobs,
        advantages,
        mask,
        mask * torch.tensor(weights).unsqueeze(1),
        entropies=step.entropies,
        ref_logprobs=step.ref_logprobs if algorithm.beta else None,
    )


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.07])
@pytest.mark.parametrize("ratio", RATIOS, ids=lambda r: "-".join(map(str, r.values())))
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_gradient_and_metrics(
    loss: str, ratio: dict[str, Any], beta: float, mask_truncated: bool
) -> None:
    clips = {"clip_low": 0.01, "clip_high": 0.02} if loss == "gspo" else {"clip_high": 0.28}
    clips |= {"sapo_temperature_pos": 0.7, "sapo_temperature_neg": 1.3} if loss == "sapo" else {}
    algorithm = AlgorithmSettings.model_validate(
        {"loss": loss, "beta": beta, "mask_truncated": mask_truncated, **clips, **ratio}
    )
    step, mask = make_step(seed=LOSSES.index(loss))
    oracle = TrlOracle(step, **trl_config(algorithm))
    sampler = step.rollout_logprobs if algorithm.old_logprobs == "sampler" else None
    advantages, wanted = oracle.advantages_and_loss(sampler)
    (wanted_gradient,) = torch.autograd.grad(wanted, step.policy_logprobs)

    ours = our_loss(algorithm, step, mask, advantages)
    (gradient,) = torch.autograd.grad(ours.loss, step.policy_logprobs)

    torch.testing.assert_close(ours.loss, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-10, atol=1e-12)
    assert gradient.abs().max() > 1e-4
    if not mask_truncated:  # TRL leaves masked completions out of its metrics
        compare_metrics(ours, oracle)


def compare_metrics(ours: LossOutput, oracle: TrlOracle) -> None:
    means = {name: float(total / count) for name, (total, count) in ours.stats.sums.items()}
    maxima = {name: float(value) for name, value in ours.stats.maxima.items()}
    found = means | maxima
    logged = [name for name in METRICS if name in found and METRICS[name] in oracle.names]
    assert "entropy" in logged
    for name in logged:
        assert found[name] == pytest.approx(oracle.logged(METRICS[name]), rel=1e-6), name


FEATURES = 5


class Policy:
    """Log-probabilities of a step's tokens, a function of weights that all tokens share.

    Args:
        step: At whose `policy_logprobs` it starts.
    """

    def __init__(self, step: StepTensors, mask: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        self.features = torch.randn((*mask.shape, FEATURES), generator=generator)
        self.start, self.mask = step.policy_logprobs.detach(), mask
        self.weights = torch.zeros(FEATURES, requires_grad=True)
        self.optimizer = torch.optim.AdamW([self.weights], lr=0.2)

    def __call__(self) -> Tensor:
        return (self.start + self.features @ self.weights) * self.mask

    def descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([self.weights], 1.0)
        self.optimizer.step()


@pytest.mark.parametrize(
    "chosen",
    [
        *({"loss": loss, "beta": 0.07} for loss in LOSSES if loss != "bnpo"),
        {"loss": "dapo", "delta": 1.5},
        {"loss": "gspo", "delta": 1.06, "clip_high": 0.05},
        {"loss": "dapo", "mask_truncated": True, **CORRECTIONS[0]},
        {"loss": "sapo", **CORRECTIONS[3]},
    ],
    ids=str,
)
def test_several_updates_of_one_step(chosen: dict[str, Any]) -> None:
    """Three mini-batches, twice: each loss and the weights after each update.

    TRL's bnpo depends on how a step is cut (`completion_weights`).
    """
    algorithm = AlgorithmSettings.model_validate(
        {"old_logprobs": "trainer", "num_mini_batches": 3, "num_iterations": 2, **chosen}
    )
    step, mask = make_step(seed=3)
    oracle = TrlOracle(step, **trl_config(algorithm))
    theirs, ours = Policy(step, mask), Policy(step, mask)
    advantages, _ = TrlOracle(step).advantages_and_loss()
    weights = completion_weights(algorithm, step.lengths, step.truncated, max_tokens=MAX_TOKENS)
    token_weights = mask * torch.tensor(weights).unsqueeze(1)
    old, seen, bounded = ours().detach(), [], 0.0
    for number in range(6):
        rows, wanted = oracle.update(number, theirs)
        found = policy_loss(
            algorithm,
            ours()[rows],
            step.rollout_logprobs[rows],
            advantages[rows],
            mask[rows],
            token_weights[rows],
            entropies=step.entropies[rows],
            old_logprobs=old[rows],
            ref_logprobs=step.ref_logprobs[rows],
        )
        torch.testing.assert_close(found.loss, wanted, rtol=1e-10, atol=1e-12)
        theirs.descend(wanted)
        ours.descend(found.loss)
        torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-10, atol=1e-12)
        seen += rows
        name = "clip_delta_fraction" if algorithm.delta else "clip_fraction"
        bounded += float(found.stats.sums[name][0])
    assert sorted(seen) == sorted([*range(12)] * 2)
    assert (bounded > 0) == (algorithm.loss != "sapo")


def test_these_steps_reach_every_bound() -> None:
    """Or the comparison above would not say much."""
    step, mask = make_step(seed=0)
    advantages = group_relative((step.terms @ step.term_weights).view(3, 4), "group").flatten()
    for settings, names in (
        ({}, ["clip_low_fraction", "clip_high_fraction"]),
        ({"loss": "gspo", "clip_low": 0.01, "clip_high": 0.02}, ["clip_low_fraction"]),
        *(({"old_logprobs": "trainer", **c}, ["correction_bounded"]) for c in CORRECTIONS),
    ):
        ours = our_loss(AlgorithmSettings.model_validate(settings), step, mask, advantages)
        for name in names:
            total, count = ours.stats.sums[name]
            assert 0 < total < count, name


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_of_totals(scale: Scale) -> None:
    step, _ = make_step(seed=1)
    wanted, _ = TrlOracle(step, scale_rewards=scale).advantages_and_loss()
    totals = (step.terms @ step.term_weights).view(3, 4)
    torch.testing.assert_close(group_relative(totals, scale).flatten(), wanted, rtol=1e-10, atol=0)


def test_advantages_of_terms() -> None:
    step, _ = make_step(seed=2)
    oracle = TrlOracle(step, multi_objective_aggregation="normalize_then_sum")
    wanted, _ = oracle.advantages_and_loss()
    found = term_relative(step.terms.view(3, 4, 3), step.term_weights, "batch")
    torch.testing.assert_close(found.flatten(), wanted, rtol=1e-10, atol=1e-12)
