"""What corrects for a sampler that is not the policy: other weights, or other arithmetic."""

from dataclasses import dataclass

import torch
from torch import Tensor

from services.settings.training import AlgorithmSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Importance weights of the objective: for each token [N, L], or each completion [N, 1]."""

    weight: Tensor
    """Without gradient, in 0..cap."""
    bounded: Tensor
    """Bool: whose ratio was over the cap, so that it was truncated or masked."""


def importance_correction(algorithm: AlgorithmSettings, gap: Tensor) -> Correction | None:
    """Importance sampling from the sampler's distribution, bounded.

        rho = p_trainer / p_sampler    of a token, or of a completion: the product of its tokens'
        truncate:   min(rho, cap)
        mask:       rho, and 0 where rho > cap

    Truncated: Yao et al., "Your efficient RL framework secretly brings you off-policy RL training"
    (2025). Masked, and of sequences: Liu et al., "When speed kills stability" (2025). They are
    TRL's `vllm_importance_sampling_mode` {token, sequence}_{truncate, mask} with `clip_max` = cap
    and, as by default there, no `clip_min`: a ratio far below 1 stays as it is, and a sequence's
    can make all of its tokens count next to nothing.

    Args:
        algorithm: The run's.
        gap: [N, L] log-probabilities of the policy before the step's first update minus those of
            the rollout, 0 outside completions.

    Returns:
        None without `correction`.
    """
    if algorithm.correction == "none":
        return None
    if algorithm.correction_level == "sequence":
        gap = gap.sum(dim=1, keepdim=True)
    ratio = torch.exp(gap)
    bounded = ratio > algorithm.correction_cap
    if algorithm.correction == "truncate":
        weight = ratio.clamp(max=algorithm.correction_cap)
    else:
        weight = ratio.masked_fill(bounded, 0.0)
    return Correction(weight=weight, bounded=bounded)
