"""The GRPO loss."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """A loss and what to log about it."""

    loss: Tensor
    """[] with gradient."""
    ratio_mean: float
    """Mean importance ratio over tokens; 1 when sampler and trainer agree."""
    clip_fraction: float
    """Share of tokens whose gradient the clipping removed."""
    mismatch_kl: float
    """Mean of rollout_logprob - policy_logprob: the k1 estimate of KL(sampler || trainer)."""
    mismatch_max: float
    """Largest absolute difference of the two."""


def grpo_loss(
    policy_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> LossOutput:
    """Clipped policy-gradient loss, a mean over tokens, then over completions.

        ratio_t = exp(policy_logprobs_t - rollout_logprobs_t)
        loss    = -mean_i 1/|o_i| sum_t min(ratio_t A_i, clip(ratio_t, 1 - clip_low, 1 + clip_high)
        A_i)

    DeepSeekMath (arXiv 2402.03300), equation 3, with beta = 0. Two deviations: the ratio's
    denominator is the sampler's own log-probability, so that it also corrects for stale weights and
    for differences between the two implementations; and the two clip bounds may differ (DAPO, arXiv
    2503.14476, section 3.1).

    Args:
        policy_logprobs: [B, L] of the trainer, with gradient.
        rollout_logprobs: [B, L] of the sampler.
        advantages: [B]
        loss_mask: [B, L] 1 on completion tokens, at least one in each row.
        clip_low: Under 1.
        clip_high: Over 0.
    """
    mask = loss_mask.to(policy_logprobs.dtype)
    gap = (policy_logprobs - rollout_logprobs) * mask
    ratio = torch.exp(gap)
    weight = advantages.unsqueeze(1)
    free, clipped = ratio * weight, ratio.clamp(1 - clip_low, 1 + clip_high) * weight
    per_token = torch.minimum(free, clipped) * mask
    loss = -(per_token.sum(dim=1) / mask.sum(dim=1)).mean()
    with torch.no_grad():
        total = mask.sum()
        return LossOutput(
            loss=loss,
            ratio_mean=float((ratio * mask).sum() / total),
            clip_fraction=float(((clipped < free) * mask).sum() / total),
            mismatch_kl=float(-gap.sum() / total),
            mismatch_max=float(gap.abs().max()),
        )
