"""Advantages from the rewards of a group."""

from torch import Tensor

EPSILON = 1e-4
"""Added to the standard deviation, as in TRL's GRPOTrainer: a group without spread gives zeros, not
noise."""


def group_normalised(rewards: Tensor, *, scale: bool) -> Tensor:
    """Rewards relative to their group.

        A_i = (r_i - mean(r)) / (std(r) + EPSILON)        (without the division if not `scale`)

    DeepSeekMath (arXiv 2402.03300), section 4.1; without the division, Dr. GRPO (arXiv 2503.20783),
    section 3.2. The standard deviation is the sample's (divided by G - 1), as in the published code
    of both.

    Args:
        rewards: [num_groups, G], G at least 2.
        scale: Divide by the group's standard deviation.

    Returns:
        [num_groups, G]
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + EPSILON) if scale else centred
