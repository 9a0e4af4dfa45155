"""The policy losses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from services.trainer_settings import AlgorithmSettings
from trainer.algorithms.stats import Stats


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """A loss and what to log about it."""

    loss: Tensor
    """[] with gradient: this micro batch's part of the step's loss. The parts add up to it."""
    stats: Stats


def policy_loss(
    algorithm: AlgorithmSettings,
    policy_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    token_weights: Tensor,
    *,
    ref_logprobs: Tensor | None = None,
) -> LossOutput:
    """Clipped policy-gradient loss.

        ratio_t = exp(policy_logprobs_t - rollout_logprobs_t)
        loss    = -sum_t w_t min(ratio_t A_i, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_i)

    DeepSeekMath (arXiv 2402.03300), equation 3, with beta = 0. Two deviations: the ratio's
    denominator is the sampler's own log-probability, so that it also corrects for stale weights and
    for differences between the two implementations; and the two clip bounds may differ (DAPO, arXiv
    2503.14476, section 3.1).

    Args:
        algorithm: Of the run.
        policy_logprobs: [N, L] of the trainer, with gradient.
        rollout_logprobs: [N, L] of the sampler.
        advantages: [N]
        loss_mask: [N, L] 1 on completion tokens.
        token_weights: [N, L] from `weighting`: what makes the sum the mean that the loss wants.
        ref_logprobs: [N, L] of the reference, where `beta` is over 0.
    """
    gap = (policy_logprobs - rollout_logprobs) * loss_mask
    ratio = torch.exp(gap)
    weight = advantages.unsqueeze(1)
    free = ratio * weight
    clipped = ratio.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high) * weight
    loss = -(torch.minimum(free, clipped) * token_weights).sum()
    stats = Stats()
    stats.add_mean("ratio_mean", ratio, loss_mask)
    stats.add_mean("clip_fraction", (clipped < free).to(ratio.dtype), loss_mask)
    stats.add_mean("mismatch_kl", -gap, loss_mask)
    stats.add_max("mismatch_max", gap.abs(), loss_mask)
    return LossOutput(loss=loss, stats=stats)
