"""Advantages from the rewards of groups."""

from typing import Literal

from torch import Tensor

Scale = Literal["group", "batch", "none"]
EPSILON = 1e-4
"""Added to the standard deviation, as in TRL's GRPOTrainer: a group of zero variance gives zeros,
not noise."""


def group_relative(rewards: Tensor, scale: Scale) -> Tensor:
    """Rewards relative to their group.

        group:  A_i = (r_i - mean(r)) / (std(r) + EPSILON)
        batch:  A_i = (r_i - mean(r)) / (std(all rewards of the step) + EPSILON)
        none:   A_i =  r_i - mean(r)

    group: DeepSeekMath (arXiv 2402.03300), section 4.1.2. batch: Lite PPO (arXiv 2508.08221).
    none: Dr. GRPO (arXiv 2503.20783), section 3.2. The standard deviation is the sample's (divided
    by n - 1), as in the published code and in TRL.

    Deviation: a group whose rewards are all equal gets exact zeros; TRL's may be off by a rounding.

    Args:
        rewards: [num_groups, G] of a whole step, G at least 2.
        scale: Whose standard deviation divides.

    Returns:
        [num_groups, G]
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    centred = centred.masked_fill(equal, 0.0)
    if scale == "none":
        return centred
    std = rewards.std(dim=1, keepdim=True) if scale == "group" else rewards.std()
    return centred / (std + EPSILON)


def term_relative(terms: Tensor, weights: Tensor, scale: Scale) -> Tensor:
    """Each term relative to its group by itself, then added.

        S_i = sum_k weight_k (r_ik - mean(r_k)) / (std(r_k) + EPSILON)
        A   = group_relative(S, scale)

    GDPO (arXiv 2601.05242) is this with `scale = "batch"`, as in TRL's `normalize_then_sum`: S has
    mean 0 in each group, so that centring it again changes nothing. A term of small variance counts
    as its weight says; in the total it drowns.

    Args:
        terms: [num_groups, G, K] of a whole step.
        weights: [K]
        scale: Whose standard deviation divides the sum.

    Returns:
        [num_groups, G]
    """
    num_groups, _, num_terms = terms.shape
    by_term = group_relative(terms.transpose(1, 2).flatten(0, 1), "group")
    weighted = by_term.unflatten(0, (num_groups, num_terms)) * weights.unsqueeze(1)
    return group_relative(weighted.sum(dim=1), scale)


def overlong_punishment(lengths: Tensor, *, max_tokens: int, buffer: int) -> Tensor:
    """What a completion loses for its length.

        0                                        length <= max_tokens - buffer
        ((max_tokens - buffer) - length) / buffer   up to max_tokens

    DAPO (arXiv 2503.14476), equation 13. Its third case, -1 over max_tokens, cannot occur: sampling
    stops there.

    Args:
        lengths: Tokens of completions, any shape.
        max_tokens: `sampling.max_tokens`.
        buffer: `algorithm.overlong_buffer`, over 0.

    Returns:
        The shape of `lengths`, in -1..0.
    """
    return ((max_tokens - buffer - lengths) / buffer).clamp(min=-1.0, max=0.0)
