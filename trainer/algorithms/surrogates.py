"""What a policy step maximises: advantages, weighed by a ratio of probabilities that is bounded."""

from dataclasses import dataclass

import torch
from torch import Tensor

from services.settings.training import AlgorithmSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """An objective for each token [N, L], or for each completion [N, 1]; the same shape in all."""

    objective: Tensor
    """With gradient; larger is better."""
    ratio: Tensor
    """Policy over old policy, with gradient."""
    clipped_low: Tensor
    """Bool: held at the lower bound, so without gradient."""
    clipped_high: Tensor
    """Bool: held at the upper bound."""
    over_delta: Tensor | None = None
    """Bool: held at `algorithm.delta`; None without it."""


def surrogate(
    algorithm: AlgorithmSettings,
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
) -> Surrogate:
    """The objective of `algorithm.loss`; see the function of each.

    Args:
        algorithm: The run's.
        policy_logprobs: [N, L] with gradient.
        old_logprobs: [N, L] of the policy that the ratio starts from.
        advantages: [N], or [N, L] of each token; not for gspo.
        loss_mask: [N, L]
    """
    log_ratio = (policy_logprobs - old_logprobs) * loss_mask
    weight = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
    if algorithm.loss == "gspo":
        log_ratio = sequence_mean(log_ratio, loss_mask)
    ratio = torch.exp(log_ratio)
    if algorithm.loss == "cispo":
        return weighted_likelihood(ratio, policy_logprobs, weight, algorithm.clip_high)
    if algorithm.loss == "sapo":
        positive, negative = algorithm.sapo_temperature_pos, algorithm.sapo_temperature_neg
        return soft_gate(ratio, weight, positive, negative)
    return clipped_ratio(ratio, weight, algorithm.clip_low, algorithm.clip_high, algorithm.delta)


def clipped_ratio(
    ratio: Tensor, weight: Tensor, clip_low: float, clip_high: float, delta: float | None = None
) -> Surrogate:
    """PPO's clipped surrogate, of grpo, bnpo, dr_grpo, dapo and gspo.

        min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)
        min(min(ratio, delta) A, clip(ratio, 1 - clip_low, 1 + clip_high) A)    with delta

    DeepSeekMath (arXiv 2402.03300), equation 3; bounds that differ (clip-higher): DAPO (arXiv
    2503.14476), section 3.1. With a ratio for each completion: GSPO (arXiv 2507.18071), equation 5.
    The losses with a ratio for each token differ in `weighting` alone.

    Where A < 0 the first form has no bound for large ratios. delta is one: dual clip (arXiv
    1912.09729), equation 5; two-sided clipping, INTELLECT-2 (arXiv 2505.07291). Where A > 0 the
    clip is the lower bound of the two, and delta changes nothing.

    Args:
        ratio: [N, L] or [N, 1].
        weight: [N, 1] advantages, or [N, L].
        clip_low: `algorithm.clip_low`
        clip_high: `algorithm.clip_high`
        delta: `algorithm.delta`, over 1 + clip_high.
    """
    free = ratio.clamp(max=delta) * weight if delta else ratio * weight
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * weight
    return Surrogate(
        objective=torch.minimum(free, clipped),
        ratio=ratio,
        clipped_low=(ratio < 1 - clip_low) & (weight < 0),
        clipped_high=(ratio > 1 + clip_high) & (weight > 0),
        over_delta=(ratio > delta) & (weight < 0) if delta else None,
    )


def weighted_likelihood(
    ratio: Tensor, policy_logprobs: Tensor, weight: Tensor, clip_high: float
) -> Surrogate:
    """The objective of cispo: every token keeps a gradient, and its weight is bounded.

        stop_gradient(min(ratio, 1 + clip_high)) A log p

    MiniMax-M1 (arXiv 2506.13585), equations 4 and 5, without a lower bound, as there.

    Deviation from TRL in the setting, not in the loss: TRL's `epsilon_high` is the cap itself, ours
    is what it has over 1, as in the paper.

    Args:
        ratio: [N, L]
        policy_logprobs: [N, L]
        weight: [N, 1] advantages, or [N, L].
        clip_high: `algorithm.clip_high`
    """
    capped = ratio.detach().clamp(max=1 + clip_high)
    return Surrogate(
        objective=capped * weight * policy_logprobs,
        ratio=ratio,
        clipped_low=torch.zeros_like(ratio, dtype=torch.bool),
        clipped_high=ratio > 1 + clip_high,
    )


def soft_gate(
    ratio: Tensor, weight: Tensor, temperature_pos: float, temperature_neg: float
) -> Surrogate:
    """The objective of sapo: a ratio that leaves 1 fades out, and no token is cut off.

        4 / temperature sigmoid(temperature (ratio - 1)) A

    Its gradient is that of `ratio A` where the ratio is 1. SAPO (arXiv 2511.20347), section 3; the
    temperature is that of the advantage's sign.

    Args:
        ratio: [N, L]
        weight: [N, 1] advantages, or [N, L].
        temperature_pos: `algorithm.sapo_temperature_pos`, for advantages over 0.
        temperature_neg: `algorithm.sapo_temperature_neg`
    """
    temperature = torch.where(weight > 0, temperature_pos, temperature_neg)
    gate = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature
    held = torch.zeros_like(ratio, dtype=torch.bool)
    return Surrogate(objective=gate * weight, ratio=ratio, clipped_low=held, clipped_high=held)


def sequence_mean(values: Tensor, loss_mask: Tensor) -> Tensor:
    """Mean over a completion's tokens.

    Given log-ratios it gives GSPO's: exp of it is (p_new(o) / p_old(o))^(1 / |o|), GSPO (arXiv
    2507.18071), equation 7.

    Args:
        values: [N, L]
        loss_mask: [N, L]

    Returns:
        [N, 1]; 0 for a completion without tokens.
    """
    tokens = loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (values * loss_mask).sum(dim=1, keepdim=True) / tokens
