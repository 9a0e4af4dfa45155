"""Credit for each element: what it costs to score, and what it does to the gradient's variance.

python -m benchmarks.element_credit
"""

import os
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

if __name__ == "__main__":  # one core, before numpy starts a thread for each core that it sees
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import torch
from torch import Tensor

from benchmarks import hostile_completions as hostile
from benchmarks.honest_graphs import (
    SAME_SIZE,
    honest_groups,
    imperfect_answer,
    make_group,
    make_scene,
    write,
)
from reward_service.scoring import make_scorer
from reward_service.service.workers import settle
from trainer.algorithms.advantages import group_relative
from trainer.algorithms.element_credit import element_relative

SIZES = ((7, 5), (30, 20), (60, 60))
NUM_GROUPS, GROUP_SIZE, ROUNDS = 16, 8, 7
HOSTILE = ("100,000 boxes", "500 equal boxes", "500 equal boxes, 2000 triplets")
LENGTH, NUM_OBJECTS = 8, 4
"""Elements of a toy answer at most, and those that are objects."""
STOP, RIGHT, WRONG = range(3)
NUM_SAMPLES = 100_000


def main() -> None:
    """Print the three tables."""
    settle()
    print("\n".join(cost_table()), end="\n\n")
    print("\n".join(hostile_table()), end="\n\n")
    print("\n".join(variance_table()))


def cost_table() -> Iterator[str]:
    """CPU time with credit over CPU time without, one after the other in each round."""
    yield "| objects x triplets | rubric | µs a graph | with credit |"
    yield "|---|---|--:|--:|"
    for size in SIZES:
        groups = honest_groups(NUM_GROUPS, GROUP_SIZE, *size)
        for rubric in ("r1-soft", "balanced", "r1-hard"):
            scorer, seconds, ratios = make_scorer(rubric), list[float](), list[float]()
            for _ in range(ROUNDS):
                times = [time.process_time()]
                for credit in (False, True):
                    scorer.score(groups, credit=credit)
                    times.append(time.process_time())
                seconds.append(times[1] - times[0])
                ratios.append((times[2] - times[1]) / seconds[-1])
            each = statistics.median(seconds) / (NUM_GROUPS * GROUP_SIZE) * 1e6
            yield (
                f"| {size[0]} x {size[1]} | `{rubric}` | {each:.0f} "
                f"| {statistics.median(ratios):.2f} times |"
            )


def hostile_table() -> Iterator[str]:
    """Milliseconds of a completion against a reference of the size limit, `balanced`."""
    rng, scorer = random.Random(0), make_scorer("balanced")
    scene = make_scene(rng, hostile.NUM_OBJECTS, hostile.NUM_TRIPLETS)
    texts = {"honest": write(imperfect_answer(scene, SAME_SIZE, rng))}
    texts |= {name: hostile.hostile_completions()[name] for name in HOSTILE}
    yield "| completion | ms | with credit |"
    yield "|---|--:|--:|"
    for name, text in texts.items():
        group, milliseconds = make_group("g", scene, [text] * 2), list[float]()
        for credit in (False, True):
            start = time.process_time()
            scorer.score([group], credit=credit)
            milliseconds.append((time.process_time() - start) * 1000 / 2)
        yield f"| {name} | {milliseconds[0]:.0f} | {milliseconds[1]:.0f} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """Estimates of a toy policy's gradient, and the gradient itself."""

    exact: Tensor
    """[P]"""
    estimates: Tensor
    """[groups, P]"""

    @property
    def mean(self) -> Tensor:
        """[P]."""
        return self.estimates.mean(dim=0)

    @property
    def standard_error(self) -> Tensor:
        """[P] of the mean."""
        return self.estimates.std(dim=0) / len(self.estimates) ** 0.5

    @property
    def variance(self) -> float:
        """That of one group's estimate, summed over the P parameters."""
        return float(self.estimates.var(dim=0).sum())

    @property
    def bias(self) -> float:
        """Length of the difference of mean and gradient, as a share of the gradient's."""
        return float((self.mean - self.exact).norm() / self.exact.norm())


def toy_gradients(credit: str, decay: float = 1.0, seed: int = 0) -> Gradients:
    """A policy that writes up to eight elements, right or wrong ones, and may stop before each.

    Elements 2 i and 2 i + 1 mean the same one of four true things: only the first of two right ones
    counts. The reward is F1. All 6,561 answers are enumerated for the gradient.

    Args:
        credit: `answer` or `element`.
        decay: `algorithm.credit_lambda`.
        seed: Of the samples.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(LENGTH, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits[:, STOP] -= 1.5
    drawn = torch.multinomial(logits.softmax(1), NUM_SAMPLES, True, generator=generator).T
    rewards, lengths = f1_along_the_way(drawn)
    groups = (NUM_SAMPLES // GROUP_SIZE, GROUP_SIZE)
    totals, increments = rewards[:, -1].view(groups), rewards.diff(dim=1).view(*groups, LENGTH)
    if credit == "answer":
        advantages = group_relative(totals, "none").unsqueeze(2).expand(*groups, LENGTH)
    else:
        counts = lengths.view(groups)
        advantages = element_relative(
            totals,
            increments,
            counts.clamp(max=NUM_OBJECTS),
            counts,
            scale="none",
            decay=decay,
        )[:, :, :LENGTH]
    scores = torch.nn.functional.one_hot(drawn, 3) - logits.softmax(1)
    written = torch.arange(LENGTH) <= lengths.unsqueeze(1)  # the token that stops is one, too
    weights = advantages.reshape(-1, LENGTH) * written * GROUP_SIZE / (GROUP_SIZE - 1)
    estimates = (weights.unsqueeze(2) * scores).view(*groups, -1).mean(dim=1)
    return Gradients(exact=exact_gradient(logits), estimates=estimates)


def exact_gradient(logits: Tensor) -> Tensor:
    """[P] of the expected reward, over every answer."""
    logits = logits.clone().requires_grad_()
    answers = torch.cartesian_prod(*[torch.arange(3)] * LENGTH)
    rewards, _ = f1_along_the_way(answers)
    chosen = logits.log_softmax(1)[torch.arange(LENGTH), answers]
    (gradient,) = torch.autograd.grad((chosen.sum(1).exp() * rewards[:, -1]).sum(), logits)
    return gradient.flatten()


def f1_along_the_way(answers: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 9] F1 after each number of elements, and [N] the number of all, of [N, 8] choices."""
    going = (answers != STOP).cumprod(dim=1)
    right = (answers == RIGHT) * going
    pairs = right.view(-1, LENGTH // 2, 2)
    pairs = torch.stack([pairs[:, :, 0], pairs[:, :, 1] * (1 - pairs[:, :, 0])], dim=2)
    hits = pairs.view(-1, LENGTH).cumsum(dim=1)
    f1 = 2 * hits.double() / (going.cumsum(dim=1) + LENGTH // 2)
    return torch.nn.functional.pad(f1, (1, 0)), going.sum(dim=1)


def variance_table() -> Iterator[str]:
    """Credit of the whole answer beside that of elements."""
    whole = toy_gradients("answer")
    yield f"Gradient of a toy policy of {LENGTH} elements, {NUM_SAMPLES:,} samples:\n"
    yield "| credit | variance of the whole answer's over this | bias | standard error |"
    yield "|---|--:|--:|--:|"
    kinds = [("answer", 1.0), *(("element", decay) for decay in (1.0, 0.9, 0.7, 0.5, 0.0))]
    for credit, decay in kinds:
        found = toy_gradients(credit, decay)
        error = float(found.standard_error.norm() / found.exact.norm())
        yield (
            f"| {credit}, lambda {decay:g} | {whole.variance / found.variance:.2f} "
            f"| {found.bias:.1%} | {error:.1%} |"
        )


if __name__ == "__main__":
    main()
