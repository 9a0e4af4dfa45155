from collections.abc import Callable

import pytest
import torch
from trl.kernels import ChunkedLogProbFunction

from trainer.algorithms.logprobs import (
    AllowedTokens,
    KeptTokens,
    SamplingDistribution,
    _add_product,
    _logits,
    token_logprobs,
)

TOKENS, HIDDEN, VOCABULARY = 11, 6, 13
Kind = Callable[[torch.Tensor], AllowedTokens | KeptTokens]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=generator).to(dtype)
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64, generator=generator).to(dtype)
    targets = torch.randint(0, 10, (TOKENS,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def naive(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """All logits at once; tokens from 10 on cannot be drawn."""
    logits = (hidden @ weight.t())[:, :10] / temperature
    found = torch.log_softmax(logits, dim=-1)
    return found.gather(1, targets[:, None])[:, 0], -(found.exp() * found).sum(1)


@pytest.mark.parametrize("chunk", [1, 4, TOKENS, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_the_full_softmax(chunk: int, temperature: float) -> None:
    distribution = SamplingDistribution(temperature=temperature, suppressed=(10, 11, 12))
    hidden, weight, targets = inputs()
    upstream = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    got, entropies, _ = token_logprobs(hidden, weight, targets, distribution, chunk=chunk)
    got_grads = torch.autograd.grad((got * upstream).sum(), (hidden, weight))
    want, want_entropies = naive(hidden, weight, targets, temperature)
    want_grads = torch.autograd.grad((want * upstream).sum(), (hidden, weight))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(entropies, want_entropies)
    torch.testing.assert_close(got_grads, want_grads)
    assert not entropies.requires_grad


def test_gradcheck() -> None:
    hidden, weight, targets = inputs()
    distribution = SamplingDistribution(temperature=1.3, suppressed=(12,))
    assert torch.autograd.gradcheck(
        lambda h, w: token_logprobs(h, w, targets, distribution, chunk=3)[0], (hidden, weight)
    )


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_only_what_is_trained_gets_a_gradient(trained: str) -> None:
    hidden, weight, targets = inputs()
    (weight if trained == "hidden" else hidden).requires_grad_(False)
    token_logprobs(hidden, weight, targets, SamplingDistribution(), chunk=4)[0].sum().backward()
    assert (hidden.grad is None, weight.grad is None) == (trained == "weight", trained == "hidden")


def test_bfloat16_sums_over_chunks_in_float32() -> None:
    """As close to the true weight gradient as one product of all tokens is."""
    hidden, weight, targets = inputs(torch.bfloat16)
    exact_hidden, exact_weight = hidden.detach().double(), weight.detach().double()
    got, *_ = token_logprobs(hidden, weight, targets, SamplingDistribution(), chunk=1)
    assert got.dtype == torch.float32
    got.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    exact_weight.requires_grad_()
    want, *_ = token_logprobs(exact_hidden, exact_weight, targets, SamplingDistribution(), chunk=99)
    want.sum().backward()
    assert exact_weight.grad is not None
    torch.testing.assert_close(weight.grad.double(), exact_weight.grad, atol=0.03, rtol=0.02)


def high_logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In bfloat16, where the likeliest tokens' logits are near 23: bfloat16 has steps of 0.125."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(64, 32, generator=generator)
    weight = torch.randn(48, 32, generator=generator)
    targets = (hidden @ weight.t()).argmax(-1)
    hidden *= (23 / (hidden @ weight.t()).amax(-1, keepdim=True)).clamp(0, 10)
    return hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_(), targets


def in_float64(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()


def test_float32_logits_of_bfloat16_states_are_not_rounded() -> None:
    hidden, weight, targets = high_logits()
    want, *_ = token_logprobs(
        *in_float64(hidden, weight), targets, SamplingDistribution(), chunk=99
    )
    gaps = {}
    for float32 in (True, False):
        got, *_ = token_logprobs(
            hidden, weight, targets, SamplingDistribution(), chunk=16, float32_logits=float32
        )
        gaps[float32] = (got - want).abs().max()
    assert gaps[True] < 1e-5
    assert gaps[False] > 1e-2


def test_gradients_of_float32_logits_are_those_of_float64_within_bfloat16() -> None:
    hidden, weight, targets = high_logits()
    exact = in_float64(hidden, weight)
    upstream = torch.linspace(-1, 2, len(targets))
    got, *_ = token_logprobs(hidden, weight, targets, SamplingDistribution(), chunk=16)
    want, *_ = token_logprobs(*exact, targets, SamplingDistribution(), chunk=99)
    gradients = torch.autograd.grad((got * upstream).sum(), (hidden, weight))
    wanted = torch.autograd.grad((want * upstream).sum(), exact)
    for one, other in zip(gradients, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - other).norm() < 2**-7 * other.norm()


def test_a_float32_head_is_trl_s() -> None:
    """Values and gradients of `cast_lm_head_to_fp32`: no number is rounded before the last."""
    hidden, weight, targets = high_logits()
    upstream = torch.linspace(-1, 2, len(targets))
    found: dict[bool, tuple[torch.Tensor, ...]] = {}
    for float32_head in (True, False):
        got = token_logprobs(
            hidden, weight, targets, SamplingDistribution(), chunk=16, float32_head=float32_head
        )
        found[float32_head] = (*got[:2], *torch.autograd.grad(got[0] @ upstream, (hidden, weight)))
    theirs = ChunkedLogProbFunction.apply(
        hidden.float(), weight.float(), None, targets, 1.0, 32, None, 1.0, ("log_probs", "entropy")
    )
    wanted = (*theirs[:2], *torch.autograd.grad(theirs[0] @ upstream, (hidden, weight)))
    for one, other in zip(found[True][:2], wanted[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)
    for number in (2, 3):
        exact, rounded = ((found[how][number] - wanted[number]).norm() for how in (True, False))
        assert exact < 1e-5 * wanted[number].norm()
        assert rounded > 1e-3 * wanted[number].norm()


def test_a_gpu_s_product_takes_bfloat16_and_gives_float32() -> None:
    """Up to the kernel: on the device without memory, which has CUDA's signatures."""
    hidden = torch.empty(TOKENS, HIDDEN, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(VOCABULARY, HIDDEN, dtype=torch.bfloat16, device="meta")
    found = _logits(hidden, weight, float32=True)
    assert (found.dtype, found.shape) == (torch.float32, (TOKENS, VOCABULARY))
    _add_product(torch.empty(VOCABULARY, HIDDEN, device="meta"), found.bfloat16().t(), hidden)


def test_float32_answers_in_float32() -> None:
    hidden, weight, targets = inputs(torch.float32)
    logprobs, entropies, _ = token_logprobs(
        hidden, weight, targets, SamplingDistribution(), chunk=4
    )
    assert logprobs.dtype == entropies.dtype == torch.float32


def test_a_suppressed_token_has_no_probability() -> None:
    hidden, weight, targets = inputs()
    logprobs, *_ = token_logprobs(
        hidden, weight, targets, SamplingDistribution(suppressed=(int(targets[0]),)), chunk=4
    )
    assert logprobs[0].exp() == 0


def grammar(targets: torch.Tensor) -> AllowedTokens:
    """Three masks over the vocabulary, of which each token's own has it."""
    generator = torch.Generator().manual_seed(5)
    table = torch.rand(3, VOCABULARY, generator=generator) < 0.4
    index = torch.randint(0, 3, (TOKENS,), generator=generator)
    table[index, targets] = True
    return AllowedTokens(table, index)


def kept(targets: torch.Tensor) -> KeptTokens:
    """The same as ids, padded with the token itself, which every row has."""
    table, index = grammar(targets)
    rows = [mask.nonzero().flatten() for mask in table[index]]
    width = max(map(len, rows))
    padded = [
        torch.cat([row, target.repeat(width - len(row))])
        for row, target in zip(rows, targets, strict=True)
    ]
    return KeptTokens(torch.stack(padded))


@pytest.mark.parametrize("kind", [grammar, kept])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_tokens_that_are_not_allowed_have_no_part_in_anything(kind: Kind, chunk: int) -> None:
    distribution = SamplingDistribution(temperature=0.7, suppressed=(10, 11, 12))
    hidden, weight, targets = inputs()
    allowed = kind(targets)
    upstream = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    got = token_logprobs(hidden, weight, targets, distribution, chunk=chunk, allowed=allowed)
    got_grads = torch.autograd.grad((got.logprobs * upstream).sum(), (hidden, weight))

    logits = (hidden @ weight.t())[:, :10] / 0.7
    table, index = grammar(targets)
    mask = table[index, :10]
    want = torch.log_softmax(logits.masked_fill(~mask, -torch.inf), dim=-1)
    chosen = want.gather(1, targets[:, None])[:, 0]
    want_grads = torch.autograd.grad((chosen * upstream).sum(), (hidden, weight))
    terms = torch.where(mask, want.exp() * want, 0.0)
    torch.testing.assert_close(got.logprobs, chosen)
    torch.testing.assert_close(got.entropies, -terms.sum(1))
    torch.testing.assert_close(got_grads, want_grads)
    removed = torch.where(mask, 0.0, torch.softmax(logits, dim=-1)).sum(1)
    torch.testing.assert_close(got.removed, removed)
    assert removed.max() > 0.2


@pytest.mark.parametrize("kind", [grammar, kept])
def test_gradcheck_over_allowed_tokens(kind: Kind) -> None:
    hidden, weight, targets = inputs()
    distribution, allowed = SamplingDistribution(temperature=1.3), kind(targets)
    assert torch.autograd.gradcheck(
        lambda h, w: token_logprobs(h, w, targets, distribution, chunk=3, allowed=allowed)[0],
        (hidden, weight),
    )
