"""Log-probabilities of given tokens in the distribution that the sampler drew them from."""

from collections.abc import Sequence

import torch
from torch import Tensor


def token_logprobs(
    logits: Tensor, targets: Tensor, *, temperature: float, suppressed: Sequence[int]
) -> Tensor:
    """Log softmax(logits / temperature) at `targets`, with `suppressed` tokens at probability zero.

    The sampler divides by the temperature and never draws suppressed tokens; a trainer that scored
    with the plain softmax would see importance ratios that differ from 1 for equal weights.

    Args:
        logits: [B, L, vocabulary]
        targets: [B, L] token ids.
        temperature: The sampler's, over 0.
        suppressed: Token ids that cannot be drawn.

    Returns:
        [B, L] float32
    """
    scaled = logits.float() / temperature
    if suppressed:
        mask = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        mask[list(suppressed)] = True
        scaled = scaled.masked_fill(mask, -torch.inf)
    chosen = scaled.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return chosen - torch.logsumexp(scaled, dim=-1)
