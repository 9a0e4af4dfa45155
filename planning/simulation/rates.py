"""What the simulation is given: how fast each part is, and how long answers are."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weight_sync.fan_out import num_rounds

Lengths = Callable[[random.Random], tuple[int, ...]]
"""Draws the tokens of each completion of a group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Each part's pace, by the names that `sgg-rl plan` prints.

    A step takes `fixed_s + token_s * tokens of the fullest GPU / efficiency`. Things of Redis, rank
    0 and the reward service happen one by one.
    """

    lengths: Lengths
    tokens_per_s: float
    """Tokens of all sequences of a server together, where there are very many."""
    half_sequences: float = 0.0
    """Sequences at which it makes half of that; 0: the pace is the same for any number."""
    prompt_s: float = 0.0
    """A server's time for a group's prompt and image, once a group."""
    prefill_token_s: float = 0.0
    """A server's time for each sampled token of a running sequence, after every update."""

    fixed_s: float = 0.0
    """Seconds of a step whatever its tokens: the optimizer, gradients between GPUs."""
    token_s: float = 0.0
    """GPU seconds of a trained token."""
    doubling_efficiency: float = 1.0
    """The share of a GPU's speed that is left each time the GPUs double."""
    prompt_tokens: float = 0.0
    """Trained with each group, once: the prompt and its image."""
    prepare_s: float = 0.0
    """To lay out a batch; beside the step before where the lag allows it."""
    export_s: float = 0.0
    """To gather the new weights: the step waits."""
    write_s: float = 0.0
    """For one rank to digest and write them; the step waits, and gathers them meanwhile."""
    checkpoint_s: float = 0.0

    stage_s: float = 0.0
    """Until servers have a version's bytes, while they sample on."""
    stage_more_s: float = 0.0
    """The same for each server, one after the other."""
    stage_round_s: float = 0.0
    """The same for each round in which servers pass it on (`weight_sync.fan_out`)."""
    commit_s: float = 0.0
    """Servers pause for this long to load a version."""
    admit_s: float = 0.0
    """To ask for one group."""
    redis_s: float = 0.0
    """Redis's one thread for a group: asked for, claimed, completed, taken."""
    hop_s: float = 0.0
    """From a server to rank 0, however many there are."""
    collect_s: float = 0.0
    """Rank 0's event loop for one sampled group: read, check, keep."""
    score_s: float = 0.0
    """The reward service for one group."""
    score_request_s: float = 0.0
    """The reward service for every request, beside its groups."""
    spread_s: float = 0.0
    """To give one group of a batch to all ranks."""

    def exported_s(self, num_writers: int) -> float:
        """Until the new weights are handed over by ranks that write a share of them each."""
        return max(self.export_s, self.write_s / num_writers)

    def staged_s(self, num_servers: int) -> float:
        """Until so many servers have a version's bytes."""
        return staged_s(
            self.stage_s, self.stage_more_s, self.stage_round_s, num_servers=num_servers
        )


def staged_s(any_number: float, more: float, each_round: float, *, num_servers: int) -> float:
    """Seconds until so many servers have a version's bytes: see `Rates`' `stage_...`."""
    return any_number + more * num_servers + each_round * num_rounds(num_servers)


def lognormal_lengths(mean: float, sigma: float, *, max_tokens: int, group_size: int) -> Lengths:
    """Completions whose log-lengths are normal, cut at `max_tokens`.

    Args:
        mean: The mean length before it is cut, in tokens.
        sigma: The standard deviation of its logarithm.
        max_tokens: `sampling.max_tokens`.
        group_size: Completions of a group.
    """
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
    return lambda rng: rng.choice(seen)
