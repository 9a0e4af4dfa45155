"""Estimates of the Kullback-Leibler divergence from the log-probabilities of sampled tokens."""

import torch
from torch import Tensor


def k1(log_ratio: Tensor) -> Tensor:
    """Unbiased, of either sign: -log(p / q) on tokens drawn from q estimates KL(q || p).

    Schulman, "Approximating KL divergence" (2020).

    Args:
        log_ratio: log p - log q, any shape.
    """
    return -log_ratio


def k3(log_ratio: Tensor) -> Tensor:
    """Unbiased, never negative, of less variance: p / q - 1 - log(p / q).

    Schulman, "Approximating KL divergence" (2020); DeepSeekMath (arXiv 2402.03300), equation 4.

    Args:
        log_ratio: log p - log q, any shape.
    """
    return torch.exp(log_ratio) - log_ratio - 1


def reference_kl(policy_logprobs: Tensor, ref_logprobs: Tensor, ratio: Tensor) -> Tensor:
    """KL(policy || reference) of each token, on tokens that an older policy drew.

        ratio k3(ref - policy)

    k3 expects tokens of the policy itself: the ratio, which keeps its gradient, makes up for that,
    and makes the gradient that of the KL. DeepSeek-V3.2 (arXiv 2512.02556), section 3.1; TRL's
    default (`use_bias_correction_kl`). DeepSeekMath (arXiv 2402.03300), equation 4, is without it.

    Args:
        policy_logprobs: [N, L] with gradient.
        ref_logprobs: [N, L]
        ratio: [N, L], or [N, 1] for gspo, with gradient and not clipped.

    Returns:
        [N, L]
    """
    return ratio * k3(ref_logprobs - policy_logprobs)
