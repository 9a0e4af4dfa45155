import pytest
import torch

from trainer.algorithms.logprobs import SamplingDistribution, token_logprobs

TOKENS, HIDDEN, VOCABULARY = 11, 6, 13


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
    got, entropies = token_logprobs(hidden, weight, targets, distribution, chunk=chunk)
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
    got, _ = token_logprobs(hidden, weight, targets, SamplingDistribution(), chunk=1)
    assert got.dtype == torch.float32
    got.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    exact_weight.requires_grad_()
    want, _ = token_logprobs(exact_hidden, exact_weight, targets, SamplingDistribution(), chunk=99)
    want.sum().backward()
    assert exact_weight.grad is not None
    torch.testing.assert_close(weight.grad.double(), exact_weight.grad, atol=0.03, rtol=0.02)


def test_float32_answers_in_float32() -> None:
    hidden, weight, targets = inputs(torch.float32)
    logprobs, entropies = token_logprobs(hidden, weight, targets, SamplingDistribution(), chunk=4)
    assert logprobs.dtype == entropies.dtype == torch.float32


def test_a_suppressed_token_has_no_probability() -> None:
    hidden, weight, targets = inputs()
    logprobs, _ = token_logprobs(
        hidden, weight, targets, SamplingDistribution(suppressed=(int(targets[0]),)), chunk=4
    )
    assert logprobs[0].exp() == 0
