"""Numbers about tokens that can be added up over micro batches and ranks.

What a loss logs. Means are over all tokens of a step's updates, truncated ones too:
`mask_truncated` changes weights, not what is looked at. With gspo, ratio_mean and clip_* are over
completions; with `correction_level = "sequence"`, so are correction_*. Ranges are rules of thumb,
not limits.

ratio_mean          Policy over old policy. Healthy: 0.95..1.05; exactly 1 with `old_logprobs =
                    "trainer"` and one update a step. Else: look at mismatch_*; lower
                    max_policy_lag or learning_rate.
clip_fraction       Share of tokens held by the clip, so without a gradient; of cispo, those of
                    capped weight; of sapo none. Healthy: under 0.1; gspo under 0.3, of completions.
                    Else: lower max_policy_lag, num_iterations or learning_rate; always 0 with gspo:
                    its clips are near 4e-4.
clip_low_fraction   Of these, at the lower bound (A < 0). Much more than the other: the policy has
                    left what was sampled; lower max_policy_lag or learning_rate.
clip_high_fraction  At the upper bound (A > 0; cispo: any A). Much more than the other: raise
                    clip_high (DAPO: 0.28), or rare good tokens are not learnt.
clip_delta_fraction With `delta`: A < 0 and held there. Healthy: under 0.001. Else: as mismatch_kl,
                    or fewer updates a step.
entropy             Of the next token, nats. Healthy: falls slowly and stays over a tenth of its
                    first value. Else, falling: raise clip_high, set beta, lower learning_rate;
                    rising: lower learning_rate.
mismatch_kl         k1 of KL(sampler || policy), nats a token, of either sign. Healthy: within 0.01
                    of 0 in bf16. Else, with lag 0: dtype, temperature or image size differ between
                    sampler and trainer; with lag: lower it, or set a correction.
mismatch_k3         k3 of the same, never negative. Healthy: under 0.01 in bf16, 1e-6 in float32
                    with lag 0. Else: as mismatch_kl.
mismatch_max        Largest difference of a token's log-probability, nats. Healthy: under 1 in bf16,
                    0.01 in float32 with lag 0. One high value is chance; every step: as
                    mismatch_kl.
correction_mean     Weight of `correction`. Healthy: 0.9..1.1. Else: much is cut off, or the policy
                    has moved on; as mismatch_kl.
correction_bounded  Share truncated or masked by `correction`. Healthy: under 0.01 of tokens, 0.1 of
                    sequences. Else: as mismatch_kl; `correction_level = "token"`.
ref_kl              KL(policy || reference), nats a token; with beta over 0. Healthy: rises slowly,
                    under 0.1. Else: raise beta or lower learning_rate.
removed_mass        Probability that the grammar, or `top_k` and `top_p`, took from the policy, a
                    token; with `sampling.constrain` or `top_k`. Healthy: falls to under 0.01. Else,
                    with a grammar: the policy does not write the notation by itself, and free
                    answers stay bad; SFT first. With `top_k` alone: raise it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Stats:
    """Sums with their counts, and maxima, all without gradient.

    Tensors until `read`, so that a GPU is not waited for at every micro batch.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    """By name: [2] sum and count."""
    maxima: dict[str, Tensor] = field(default_factory=dict)
    """By name: []."""

    def add_mean(self, name: str, values: Tensor, loss_mask: Tensor) -> None:
        """A mean over tokens, or over completions.

        Args:
            name: The metric's.
            values: [N, L] of tokens, or [N, 1] of completions; numbers or truth values.
            loss_mask: [N, L] 1 on tokens; a completion counts if it has one.
        """
        with torch.no_grad():
            mask = loss_mask.bool()
            if values.shape != mask.shape:
                mask = mask.any(dim=1, keepdim=True)
            total = values.double().masked_fill(~mask, 0.0).sum()
            self.sums[name] = torch.stack([total, mask.sum().double()])

    def add_max(self, name: str, values: Tensor, loss_mask: Tensor) -> None:
        """The largest of `values` [N, L] where `loss_mask` is 1."""
        with torch.no_grad():
            self.maxima[name] = values.masked_fill(~loss_mask.bool(), -torch.inf).max().double()

    @classmethod
    def total(cls, parts: Iterable["Stats"]) -> "Stats":
        """All parts together."""
        result = cls()
        for part in parts:
            for name, pair in part.sums.items():
                result.sums[name] = result.sums.get(name, 0.0) + pair
            for name, value in part.maxima.items():
                result.maxima[name] = torch.maximum(result.maxima.get(name, value), value)
        return result
