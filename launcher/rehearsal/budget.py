"""How many tokens a completion may have, so that a rehearsal on a CPU ends in its minutes."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from launcher.rehearsal.cut import NUM_STEPS
from planning.estimate import weight_bytes
from planning.shapes import ModelShape
from services.host.environment import environment_value
from services.settings import Settings

_LEAST_TOKENS = 16
_ANSWER_TOKENS = 600
"""Length of an annotated graph of VG150's size, as JSON."""
_FIXED_S = 150.0
"""The starts: two of vLLM's engine, three of the trainer; and the evaluation."""
_SHARE = 0.5
"""What a step comes to of a bare product's pace."""
_PASSES = 4
"""Forward, forward again where activations are recomputed, and two backward: 2 FLOP a parameter and
token each."""


def threads_on_cpu() -> dict[str, str]:
    """Variables that give each part all cores of a machine without GPUs, unless the user says so.

    `sgg-rl run` gives the trainer one half and the sampler the other, for they work at the same
    time. Here, in steps of one group, one nearly always waits for the other; and none spins while
    it waits.
    """
    if environment_value("OMP_NUM_THREADS") is not None:
        return {}
    return {"OMP_NUM_THREADS": str(os.cpu_count() or 1), "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a machine's cores do."""

    flops: float
    """Floating-point operations a second, of a product of matrices in float32."""
    bytes_per_s: float
    """Bytes a second that are read from memory."""


def measured_pace() -> Pace:
    """Measure this machine for a second, with as many threads as a trainer gets."""
    import torch

    matrix, vector = torch.ones(1024, 1024), torch.ones(64 * 2**20)
    product_s = min(_seconds(lambda: matrix @ matrix) for _ in range(5))
    read_s = min(_seconds(vector.sum) for _ in range(3))
    return Pace(flops=2 * 1024**3 / product_s, bytes_per_s=vector.nbytes / read_s)


def fitting_tokens(
    settings: Settings, shape: ModelShape, prompt_tokens: int, pace: Pace, seconds: float
) -> int:
    """The most tokens of a completion for which there is the time: all, or a power of two.

    Args:
        settings: The rehearsal's; `sampling.max_tokens` is the most.
        shape: Its model's.
        prompt_tokens: Of the longest prompt, its image's among them.
        pace: The machine's.
        seconds: Of the whole rehearsal.
    """
    most = settings.sampling.max_tokens
    powers = (1 << bits for bits in reversed(range(_LEAST_TOKENS.bit_length() - 1, 20)))
    for tokens in (most, *(power for power in powers if power < most)):
        if chain_seconds(settings, shape, prompt_tokens, tokens, pace) <= seconds:
            return tokens
    return min(most, _LEAST_TOKENS)


def chain_seconds(
    settings: Settings, shape: ModelShape, prompt_tokens: int, tokens: int, pace: Pace
) -> float:
    """About how long the whole chain takes with completions of so many tokens.

    A token of a completion is sampled by reading all weights once, and trained on by products.
    """
    head = shape.vocab_size * shape.hidden_size
    layers = shape.language - head
    answers = settings.trainer.group_size * tokens
    vision = shape.tower * settings.model.max_pixels / shape.patch_size**2
    step = vision + layers * (prompt_tokens + answers) + head * answers
    sft = vision + (layers + head) * (prompt_tokens + _ANSWER_TOKENS)
    products = 2 * _PASSES * (sft + (NUM_STEPS + 1) * step) / (pace.flops * _SHARE)
    weights = weight_bytes(settings) * shape.num_parameters
    sampling = (NUM_STEPS + 2) * tokens * weights / (pace.bytes_per_s * _SHARE)
    return _FIXED_S + products + sampling


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
