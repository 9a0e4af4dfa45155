"""Log-probabilities of given tokens in the distribution that the sampler drew them from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDistribution:
    """What stands between a model's logits and the distribution that its tokens come from.

    The sampler divides by the temperature and never draws suppressed tokens; a trainer that scored
    with the plain softmax would see importance ratios that differ from 1 for equal weights.

    Example: `SamplingDistribution(temperature=1.0, suppressed=(151655,))`
    """

    temperature: float = 1.0
    """Over 0."""
    suppressed: tuple[int, ...] = ()
    """Token ids that cannot be drawn."""

    def scaled(self, logits: Tensor) -> Tensor:
        """Logits over the temperature, in float32 or better; suppressed tokens at the least float.

        Args:
            logits: [T, vocabulary]
        """
        scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature != 1.0:
            scaled = scaled / self.temperature
        if self.suppressed:
            lowest = torch.finfo(scaled.dtype).min  # not -inf: times probability 0 it would be NaN
            index = torch.tensor(self.suppressed, device=scaled.device)
            scaled = scaled.index_fill(-1, index, lowest)
        return scaled


class AllowedTokens(NamedTuple):
    """What a grammar lets each of T tokens be."""

    table: Tensor
    """[M, vocabulary] truth values: the distinct masks."""
    index: Tensor
    """[T] the row of each token's."""

    def limit(self, scaled: Tensor, part: slice) -> Tensor:
        """[t, vocabulary] logits of a part, at the least float elsewhere; in their memory."""
        return scaled.masked_fill_(~self.table[self.index[part]], torch.finfo(scaled.dtype).min)


class KeptTokens(NamedTuple):
    """What each of T tokens was drawn from, where the sampler says so."""

    ids: Tensor
    """[T, K] tokens; a row may repeat one of its own."""

    def limit(self, scaled: Tensor, part: slice) -> Tensor:
        """[t, vocabulary] logits of a part, at the least float elsewhere; in their memory."""
        ids = self.ids[part]
        kept = scaled.gather(-1, ids)
        return scaled.fill_(torch.finfo(scaled.dtype).min).scatter_(-1, ids, kept)


class TokenScores(NamedTuple):
    """What the head says of T tokens; float32, or float64 for float64 states."""

    logprobs: Tensor
    """[T] with gradient."""
    entropies: Tensor
    """[T] in nats, without gradient."""
    removed: Tensor
    """[T] probability, 0..1, of the tokens that are not allowed; without gradient."""


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    distribution: SamplingDistribution,
    *,
    chunk: int,
    allowed: AllowedTokens | KeptTokens | None = None,
    float32_logits: bool = True,
    float32_head: bool = False,
) -> TokenScores:
    """Log softmax of the head's scaled logits at `targets`, and the entropy of that softmax.

        z_t       = (h_t W^T) / temperature, -inf at suppressed tokens and those not allowed
        logprob_t = z_t[target_t] - logsumexp(z_t)
        entropy_t = logsumexp(z_t) - sum_v softmax(z_t)_v z_t,v

    Logits exist for `chunk` tokens at a time, forward and backward: the backward pass computes them
    again from `hidden`, and only [T] numbers are kept in between. The idea is that of Liger's fused
    linear cross-entropy (arXiv 2410.10989, section 3.2), with gradients made in the backward pass,
    because the loss is not known here.

    Args:
        hidden: [T, hidden_size] states that predict the tokens.
        weight: [vocabulary, hidden_size] of the head.
        targets: [T] token ids.
        distribution: That the tokens were drawn from.
        chunk: Tokens whose logits exist at the same time.
        allowed: What each token could be, where that was not the whole vocabulary.
        float32_logits: Whether the products of bfloat16 states, which are summed in float32, stay
            in it; else they are rounded, as the model's own head rounds them.
        float32_head: Whether states and weight are computed with as float32 copies, so that the
            gradient of the logits is not rounded to bfloat16 either: TRL's
            `cast_lm_head_to_fp32`. The copies stay until the backward pass.
    """
    if float32_head and hidden.dtype == torch.bfloat16:
        hidden, weight = hidden.float(), weight.float()
    found = _TokenLogprobs.apply(
        hidden, weight, targets, allowed, distribution, chunk, float32_logits
    )
    return TokenScores(*found)


class _TokenLogprobs(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        allowed: AllowedTokens | KeptTokens | None,
        distribution: SamplingDistribution,
        chunk: int,
        float32_logits: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = hidden.new_zeros(
            (4, len(targets)), dtype=torch.promote_types(hidden.dtype, torch.float32)
        )
        logprobs, entropies, totals, removed = found
        for part in _parts(len(targets), chunk):
            scaled = distribution.scaled(_logits(hidden[part], weight, float32_logits))
            if allowed is not None:
                whole = torch.logsumexp(scaled, dim=-1)
                scaled = allowed.limit(scaled, part)
                removed[part] = -torch.expm1(torch.logsumexp(scaled, dim=-1) - whole)
            total = torch.logsumexp(scaled, dim=-1)
            chosen = scaled.gather(-1, targets[part].unsqueeze(-1)).squeeze(-1)
            expected = torch.linalg.vecdot(torch.softmax(scaled, dim=-1), scaled)
            logprobs[part], entropies[part], totals[part] = chosen - total, total - expected, total
        # The head's own parameter is saved, not a copy: under ZeRO-3 it is gathered again before
        # the backward pass of the module that called this.
        ctx.save_for_backward(hidden, weight, targets, totals)
        ctx.distribution, ctx.chunk, ctx.float32_logits = distribution, chunk, float32_logits
        ctx.allowed = allowed
        ctx.mark_non_differentiable(entropies, removed)
        return logprobs, entropies, removed

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, totals = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        # Products and sums over chunks in float32: in bfloat16 each would round.
        weight_grad = torch.zeros_like(weight, dtype=totals.dtype) if wants_weight else None
        for part in _parts(len(targets), ctx.chunk):
            scaled = ctx.distribution.scaled(_logits(hidden[part], weight, ctx.float32_logits))
            if ctx.allowed is not None:
                scaled = ctx.allowed.limit(scaled, part)
            logits_grad = _logits_grad(
                scaled,
                targets[part],
                totals[part],
                grad[part] / ctx.distribution.temperature,
            ).to(hidden.dtype)
            if hidden_grad is not None:
                torch.mm(logits_grad, weight, out=hidden_grad[part])
            if weight_grad is not None:
                _add_product(weight_grad, logits_grad.t(), hidden[part])
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight.dtype)
        return hidden_grad, weight_grad, *[None] * 5


def _logits(hidden: Tensor, weight: Tensor, float32: bool) -> Tensor:
    """[T, vocabulary] `hidden W^T`, in float32 where that is wanted of a smaller type."""
    if not float32 or hidden.dtype in (torch.float32, torch.float64):
        return hidden @ weight.t()
    if hidden.device.type == "cpu":  # has no such product: copies of both
        return hidden.float() @ weight.t().float()
    return torch.mm(hidden, weight.t(), out_dtype=torch.float32)


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """`total += one @ other`, whose product is not rounded to a smaller type than total's."""
    if one.dtype == total.dtype or one.device.type == "cpu":
        total.addmm_(one.to(total.dtype), other.to(total.dtype))
    else:
        torch.addmm(total, one, other, out_dtype=total.dtype, out=total)


def _logits_grad(scaled: Tensor, targets: Tensor, totals: Tensor, grad: Tensor) -> Tensor:
    """`grad * (one_hot(target) - softmax(scaled))`, in the memory of `scaled`."""
    probabilities = scaled.sub_(totals.unsqueeze(-1)).exp_()
    result = probabilities.mul_(-grad.unsqueeze(-1))
    return result.scatter_add_(-1, targets.unsqueeze(-1), grad.unsqueeze(-1))


def _parts(total: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, total, size))
