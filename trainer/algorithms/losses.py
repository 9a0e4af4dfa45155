"""The policy losses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from services.settings.training import AlgorithmSettings
from trainer.algorithms.correction import Correction, importance_correction
from trainer.algorithms.divergence import k1, k3, reference_kl
from trainer.algorithms.stats import Stats
from trainer.algorithms.surrogates import Surrogate, surrogate


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """A loss and what to log about it."""

    loss: Tensor
    """[] with gradient: this micro batch's part of the update's loss. The parts add up to it."""
    stats: Stats


def policy_loss(
    algorithm: AlgorithmSettings,
    policy_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    token_weights: Tensor,
    *,
    entropies: Tensor,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    removed: Tensor | None = None,
) -> LossOutput:
    """A micro batch's part of an update's loss.

        loss = sum_t w_t (-rho_t objective_t + beta KL_t)

    w: `weighting.completion_weights`; objective: `surrogates`; rho: `correction`, or 1; KL:
    `divergence.reference_kl`, where `beta` is over 0. As in TRL, rho does not weigh the KL.

    The objective's ratio is of the policy against

        old_logprobs = "sampler"   what the sampler says of its own draw. One ratio corrects for
                                   stale weights and for differences between the two
                                   implementations, and the clip bounds both.
        old_logprobs = "trainer"   itself before the step's first update. In that update ratios are
                                   1 and nothing is clipped; `correction` has the rest.

    rho and mismatch_* are of the policy before the first update against the sampler, so that they
    are the same in all updates of a step.

    Deviation: TRL has the second alone, and clips only from the second update of a batch on.

    Args:
        algorithm: The run's.
        policy_logprobs: [N, L] of the trainer, with gradient.
        rollout_logprobs: [N, L] of the sampler.
        advantages: [N], or [N, L] of each token (`element_credit`).
        loss_mask: [N, L] 1 on completion tokens.
        token_weights: [N, L] what makes the sum the mean that the loss wants; 0 beyond the mask.
        entropies: [N, L] of the policy, in nats; only logged.
        old_logprobs: [N, L] of the policy before the step's first update; None in that update.
        ref_logprobs: [N, L] of the reference, where `beta` is over 0.
        removed: [N, L] probability that a grammar or `top_k` took away, if one did; only logged.
    """
    if old_logprobs is None:
        old_logprobs = policy_logprobs.detach()
    start = rollout_logprobs if algorithm.old_logprobs == "sampler" else old_logprobs
    found = surrogate(algorithm, policy_logprobs, start, advantages, loss_mask)
    gap = (old_logprobs - rollout_logprobs) * loss_mask
    correction = importance_correction(algorithm, gap)
    token_loss = -found.objective
    stats = policy_stats(found, correction, gap, entropies, loss_mask)
    if correction is not None:
        token_loss = token_loss * correction.weight
    if algorithm.beta > 0:
        kl = reference_kl(policy_logprobs, ref_logprobs, found.ratio)
        stats.add_mean("ref_kl", kl, loss_mask)
        token_loss = token_loss + algorithm.beta * kl
    if removed is not None:
        stats.add_mean("removed_mass", removed, loss_mask)
    return LossOutput(loss=(token_loss * token_weights).sum(), stats=stats)


def with_finite_guard(loss: Tensor, policy_logprobs: Tensor) -> Tensor:
    """The same loss and gradients; all gradients are NaN where a number is not finite.

    The clip, a mask or an advantage of 0 may hide a NaN from most gradients, or from all. So every
    weight that the log-probabilities depend on learns of it, on every rank once gradients are
    summed, and no GPU is waited for.

    Args:
        loss: [] of a micro batch, with gradient.
        policy_logprobs: [N, L] that it is made of; 0 where there is no token.
    """
    is_finite = loss.isfinite() & policy_logprobs.isfinite().all()
    return loss + torch.where(is_finite, 0.0, torch.nan) * policy_logprobs.sum()


def policy_stats(
    found: Surrogate,
    correction: Correction | None,
    gap: Tensor,
    entropies: Tensor,
    loss_mask: Tensor,
) -> Stats:
    """What `policy_loss` logs: the table in `stats`.

    Args:
        found: The objective.
        correction: What `importance_correction` gave.
        gap: [N, L] old minus rollout log-probabilities.
        entropies: [N, L]
        loss_mask: [N, L]
    """
    stats = Stats()
    stats.add_mean("ratio_mean", found.ratio, loss_mask)
    stats.add_mean("clip_fraction", found.clipped_low | found.clipped_high, loss_mask)
    stats.add_mean("clip_low_fraction", found.clipped_low, loss_mask)
    stats.add_mean("clip_high_fraction", found.clipped_high, loss_mask)
    if found.over_delta is not None:
        stats.add_mean("clip_delta_fraction", found.over_delta, loss_mask)
    stats.add_mean("entropy", entropies, loss_mask)
    stats.add_mean("mismatch_kl", k1(gap), loss_mask)
    stats.add_mean("mismatch_k3", k3(gap), loss_mask)
    stats.add_max("mismatch_max", gap.abs(), loss_mask)
    if correction is not None:
        stats.add_mean("correction_mean", correction.weight, loss_mask)
        stats.add_mean("correction_bounded", correction.bounded, loss_mask)
    return stats
