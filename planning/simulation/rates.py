"""What the simulation is given: how fast each part is, and how long answers are."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Lengths = Callable[[random.Random], tuple[int, ...]]
"""Draws the tokens of each completion of a group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRates:
    """Of one rollout GPU."""

    tokens_per_s: float
    """Of all sequences together, where there are very many."""
    half_sequences: float
    """Sequences at which it makes half of that; 0: the pace is the same for any number."""
    prompt_s: float = 0.0
    """Of its time for a group's prompt and image, once a group."""
    prefill_token_s: float = 0.0
    """Of its time for each sampled token of a running sequence, after every update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRates:
    """Of the trainer: a step takes `fixed_s + token_s * tokens of the fullest GPU / efficiency`."""

    fixed_s: float
    """Whatever the tokens: the optimizer, gradients between GPUs."""
    token_s: float = 0.0
    """GPU seconds of a trained token."""
    doubling_efficiency: float = 1.0
    """What is left of a GPU's speed each time the GPUs double."""
    prompt_tokens: int = 0
    """Trained with each group, once: the prompt and its image."""
    prepare_s: float = 0.0
    """To lay out a batch; beside the step before where the lag allows it."""
    export_s: float = 0.0
    """To hand over the new weights: the step waits."""
    checkpoint_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRates:
    """Of what is between trainer and servers; seconds of things that happen one by one."""

    stage_s: Callable[[int], float]
    """Until so many servers have a version's bytes, while they sample on."""
    commit_s: float
    """Servers pause for this long to load a version."""
    admit_s: float = 0.0
    """To ask for one group."""
    redis_s: float = 0.0
    """Of Redis's one thread for a group: asked for, claimed, completed, taken."""
    hop_s: float = 0.0
    """From a server to rank 0, however many there are."""
    collect_s: float = 0.0
    """Of rank 0's event loop for one sampled group: read, check, keep."""
    score_s: float = 0.0
    """Of the reward service for one group."""
    score_request_s: float = 0.0
    """Of every request for rewards, beside its groups."""
    spread_s: float = 0.0
    """To give one group of a batch to all ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """All of them."""

    sampling: SamplingRates
    training: TrainingRates
    services: ServiceRates
    lengths: Lengths


def lognormal_lengths(mean: float, sigma: float, *, max_tokens: int, group_size: int) -> Lengths:
    """Completions whose log-lengths are normal, cut at `max_tokens`.

    Args:
        mean: Of a length before it is cut, in tokens.
        sigma: Of the logarithm.
        max_tokens: `sampling.max_tokens`.
        group_size: Completions of a group.
    """
    import math

    centre = math.log(mean) - sigma**2 / 2

    def draw(rng: random.Random) -> tuple[int, ...]:
        return tuple(
            max(1, min(max_tokens, round(rng.lognormvariate(centre, sigma))))
            for _ in range(group_size)
        )

    return draw


def seen_lengths(groups: Sequence[Sequence[int]]) -> Lengths:
    """Groups of an earlier run, drawn with replacement: long images stay long in all answers."""
    seen = [tuple(group) for group in groups]

    def draw(rng: random.Random) -> tuple[int, ...]:
        return rng.choice(seen)

    return draw
