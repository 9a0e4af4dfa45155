"""The losses by hand, and their sum over any cut of a step."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.settings.training import AlgorithmSettings
from trainer.algorithms.divergence import k1, k3
from trainer.algorithms.losses import LossOutput, policy_loss
from trainer.algorithms.stats import Stats
from trainer.algorithms.weighting import completion_weights

MAX_TOKENS = 6
ALGORITHMS: list[dict[str, Any]] = [
    *({"loss": loss} for loss in ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo")),
    {"loss": "sapo", "num_mini_batches": 2},
    {"loss": "dapo", "delta": 1.3, "mask_truncated": True, "beta": 0.1},
    {"old_logprobs": "trainer", "correction": "mask", "correction_level": "sequence"},
]


def logs(*probabilities: list[float]) -> Tensor:
    return torch.log(torch.tensor(probabilities, dtype=torch.float64))


def loss_of(
    algorithm: dict[str, Any],
    policy: Tensor,
    rollout: Tensor,
    advantages: list[float],
    *,
    lengths: list[int] | None = None,
    ref: Tensor | None = None,
) -> LossOutput:
    """The loss of a whole step."""
    chosen = AlgorithmSettings.model_validate(algorithm)
    lengths = lengths or [policy.shape[1]] * len(advantages)
    weights = completion_weights(chosen, lengths, [False] * len(lengths), max_tokens=MAX_TOKENS)
    mask = (torch.arange(policy.shape[1]) < torch.tensor(lengths).unsqueeze(1)).double()
    return policy_loss(
        chosen,
        policy,
        rollout,
        torch.tensor(advantages, dtype=torch.float64),
        mask,
        mask * torch.tensor(weights, dtype=torch.float64).unsqueeze(1),
        entropies=torch.zeros_like(policy),
        ref_logprobs=ref,
    )


def mean_of(output: LossOutput, name: str) -> float:
    total, count = output.stats.sums[name]
    return float(total / count)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("grpo", [1 / 6, 1 / 12]),
        ("gspo", [1 / 6, 1 / 12]),
        ("dapo", [1 / 6, 1 / 6]),
        ("cispo", [1 / 6, 1 / 6]),
        ("bnpo", [1 / 6, 1 / 6]),
        ("dr_grpo", [1 / 18, 1 / 18]),
        ("sapo", [1 / 6, 1 / 12]),
    ],
)
def test_a_truncated_completion_counts_among_completions_not_among_tokens(
    loss: str, expected: list[float]
) -> None:
    algorithm = AlgorithmSettings.model_validate({"loss": loss, "mask_truncated": True})
    weights = completion_weights(algorithm, [2, 4, 6], [False, False, True], max_tokens=6)
    assert weights == pytest.approx([*expected, 0.0])
    assert completion_weights(algorithm, [6], [True], max_tokens=6) == [0.0]


def test_gspo_bounds_the_ratio_of_the_whole_completion() -> None:
    policy = logs([0.8, 0.4], [0.5, 0.9]).requires_grad_()
    rollout = logs([0.4, 0.2], [0.5, 0.8])
    out = loss_of({"loss": "gspo", "clip_high": 0.5}, policy, rollout, [1.0, -2.0])
    ratio = math.sqrt(0.9 / 0.8)
    assert out.loss.item() == pytest.approx(-(1.5 * 1 + ratio * -2) / 2)
    out.loss.backward()
    assert policy.grad is not None
    assert policy.grad[0].tolist() == [0.0, 0.0]  # clipped: ratio 2
    assert policy.grad[1].tolist() == pytest.approx([ratio / 2, ratio / 2])
    assert mean_of(out, "clip_high_fraction") == 0.5
    assert mean_of(out, "ratio_mean") == pytest.approx((2 + ratio) / 2)


def test_cispo_caps_the_weight_and_keeps_the_gradient() -> None:
    policy = logs([0.9, 0.3]).requires_grad_()
    out = loss_of({"loss": "cispo", "clip_high": 0.5}, policy, logs([0.3, 0.3]), [2.0])
    assert out.loss.item() == pytest.approx(-(1.5 * 2 * math.log(0.9) + 2 * math.log(0.3)) / 2)
    out.loss.backward()
    assert policy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx([-1.5, -1.0])
    assert mean_of(out, "clip_fraction") == 0.5


def test_delta_bounds_what_a_negative_advantage_weighs() -> None:
    policy = logs([0.9, 0.3], [0.9, 0.3]).requires_grad_()
    rollout = logs([0.1, 0.2], [0.1, 0.2])
    out = loss_of({"delta": 3.0}, policy, rollout, [-1.0, 1.0])
    out.loss.backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [pytest.approx([0.0, 1.5 / 4]), [0.0, 0.0]]
    assert out.loss.item() == pytest.approx((3.0 + 1.5 - 1.2 - 1.2) / 4)
    assert mean_of(out, "clip_delta_fraction") == 0.25
    assert mean_of(out, "clip_high_fraction") == 0.5
    assert mean_of(out, "ratio_mean") == pytest.approx((9 + 1.5) / 2)


def test_later_updates_clip_against_the_first_and_correct_as_it_did() -> None:
    """The ratio is 2, of which the correction from 0.5 to 0.25 knows nothing."""
    policy = logs([0.5]).requires_grad_()
    algorithm = AlgorithmSettings(old_logprobs="trainer", correction="truncate")
    one = torch.ones(1, 1, dtype=torch.float64)
    out = policy_loss(
        algorithm,
        policy,
        logs([0.5]),
        -one[0],
        one,
        one,
        entropies=one,
        old_logprobs=logs([0.25]),
    )
    out.loss.backward()
    assert policy.grad is not None
    assert policy.grad.item() == pytest.approx(2 * 0.5)
    assert mean_of(out, "correction_mean") == pytest.approx(0.5)
    assert mean_of(out, "mismatch_kl") == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("kind", "level", "weights"),
    [
        ("truncate", "token", [2.0, 0.5]),
        ("mask", "token", [0.0, 0.5]),
        ("truncate", "sequence", [1.5, 1.5]),
        ("mask", "sequence", [1.5, 1.5]),
    ],
)
def test_correction_weighs_the_policy_gradient(kind: str, level: str, weights: list[float]) -> None:
    policy = logs([0.9, 0.3]).requires_grad_()
    settings = {"old_logprobs": "trainer", "correction": kind, "correction_level": level}
    out = loss_of(settings, policy, logs([0.3, 0.6]), [1.0])
    out.loss.backward()
    assert policy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx([-w / 2 for w in weights])
    assert mean_of(out, "ratio_mean") == 1.0
    assert mean_of(out, "correction_mean") == pytest.approx(sum(weights) / 2)
    assert mean_of(out, "correction_bounded") == (0.5 if level == "token" else 0.0)


def test_the_kl_is_added_with_its_weight() -> None:
    policy, ref = logs([0.5, 0.25]), logs([0.25, 0.25])
    out = loss_of({"beta": 0.1}, policy, policy, [0.0], ref=ref)
    expected = (0.5 - math.log(0.5) - 1) / 2
    assert out.loss.item() == pytest.approx(0.1 * expected)
    assert mean_of(out, "ref_kl") == pytest.approx(expected)


def test_divergences_estimate_the_kl() -> None:
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    true = (q * (q / p).log()).sum().item()
    log_ratio = (p / q).log()
    assert (q * k1(log_ratio)).sum().item() == pytest.approx(true)
    assert (q * k3(log_ratio)).sum().item() == pytest.approx(true)
    assert k3(log_ratio).min() >= 0


def test_the_mismatch_is_of_policy_against_sampler() -> None:
    policy, rollout = logs([0.5, 0.2], [0.1, 1.0]), logs([0.25, 0.4], [0.1, 1.0])
    out = loss_of({"old_logprobs": "trainer"}, policy, rollout, [1.0, 1.0], lengths=[2, 1])
    gaps = [math.log(2), -math.log(2), 0.0]
    assert mean_of(out, "mismatch_kl") == pytest.approx(0.0)
    assert mean_of(out, "mismatch_k3") == pytest.approx(sum(math.exp(g) - g - 1 for g in gaps) / 3)
    assert out.stats.maxima["mismatch_max"].item() == pytest.approx(math.log(2))


@given(
    lengths=st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=8),
    places=st.lists(st.integers(0, 3), min_size=8, max_size=8),
    chosen=st.sampled_from(ALGORITHMS),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=80)
def test_any_cut_of_a_step_gives_its_loss_gradient_and_means(
    lengths: list[int], places: list[int], chosen: dict[str, Any], seed: int
) -> None:
    """Micro batches of ranks: each is padded to its own longest completion."""
    algorithm = AlgorithmSettings.model_validate(chosen)
    torch.manual_seed(seed)
    mask = (torch.arange(MAX_TOKENS) < torch.tensor(lengths).unsqueeze(1)).double()
    policy, rollout, ref = (-torch.rand(mask.shape).double() * mask for _ in range(3))
    policy.requires_grad_()
    advantages = torch.randn(len(lengths)).double()
    truncated = [length == MAX_TOKENS for length in lengths]
    weights = completion_weights(algorithm, lengths, truncated, max_tokens=MAX_TOKENS)
    token_weights = mask * torch.tensor(weights).double().unsqueeze(1)

    def part(rows: list[int]) -> LossOutput:
        longest = max(lengths[row] for row in rows)
        cut = (rows, slice(longest))
        return policy_loss(
            algorithm,
            policy[cut],
            rollout[cut],
            advantages[rows],
            mask[cut],
            token_weights[cut],
            entropies=-policy.detach()[cut],
            ref_logprobs=ref[cut],
        )

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, policy)[0]

    whole = part(list(range(len(lengths))))
    rows_of = [[i for i in range(len(lengths)) if places[i] == place] for place in range(4)]
    parts = [part(rows) for rows in rows_of if rows]
    summed = torch.stack([p.loss for p in parts]).sum()
    torch.testing.assert_close(summed, whole.loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(summed), gradient(whole.loss), rtol=1e-10, atol=1e-12)

    stats = Stats.total(p.stats for p in parts)
    assert stats.maxima == whole.stats.maxima
    for name, pair in whole.stats.sums.items():
        torch.testing.assert_close(stats.sums[name], pair, msg=name)
