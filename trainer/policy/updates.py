"""What a step is to the engine: passes, the updates that they make, and what is said of them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

import torch
from torch import Tensor

from trainer.algorithms.losses import LossOutput
from trainer.algorithms.stats import Stats
from trainer.batches.batch import MicroBatch


@dataclass(slots=True, kw_only=True)
class StepOutput:
    """What the engine reports of a step, of this rank."""

    stats: Stats
    """Sums over the updates that were made."""
    grad_norms: list[list[float]]
    """[iteration][mini-batch] of each update, over all ranks, before clipping; NaN or infinite
    where a number was not finite, so that the update was skipped."""
    policy_logprobs: list[list[float]]
    """[completion][token] before the first update, in the order of the rank's groups."""

    @property
    def skipped(self) -> bool:
        """Whether every update was, so that the weights are as before; on every rank."""
        return not self._made

    @property
    def grad_norm(self) -> float:
        """Mean over the updates that were made; NaN where none was."""
        return fmean(self._made) if self._made else math.nan

    @property
    def num_skipped_updates(self) -> int:
        """The same on every rank."""
        return sum(map(len, self.grad_norms)) - len(self._made)

    @property
    def metrics(self) -> dict[str, float]:
        """What the step's line says of its updates."""
        return {"grad_norm": self.grad_norm, "num_skipped_updates": self.num_skipped_updates}

    @property
    def skipped_mini_batches(self) -> list[int]:
        """Those that gave no update in any iteration: nothing was learnt from their groups."""
        of_each = enumerate(zip(*self.grad_norms, strict=True))
        return [place for place, norms in of_each if not any(map(math.isfinite, norms))]

    @property
    def _made(self) -> list[float]:
        return [*filter(math.isfinite, chain.from_iterable(self.grad_norms))]


@dataclass(slots=True)
class Pass:
    """A micro batch, on the host, with what is computed once a step; on the device."""

    batch: MicroBatch
    old_logprobs: Tensor | None = None
    """[N, L] of the policy before the first update."""
    ref_logprobs: Tensor | None = None
    """[N, L] of the reference, where there is one."""


@dataclass(slots=True)
class Update:
    """One optimizer step, on this rank."""

    outputs: list[LossOutput]
    """One for each micro batch."""
    grad_norm: float
    """Over all ranks, before clipping; not finite where the update was skipped."""


def step_stats(updates: Sequence[Sequence[Update]], world_size: int) -> Stats:
    """What a step's updates log: those that were made, or all where none was.

    Args:
        updates: [iteration][mini-batch]
        world_size: Number of the trainer's processes.
    """
    all_made = [[u for u in iteration if math.isfinite(u.grad_norm)] for iteration in updates]
    by_iteration = all_made if any(all_made) else updates
    made = [*chain.from_iterable(by_iteration)]
    stats = _total(made)
    # A sum over ranks is wanted, and a mean is what becomes of (sum, count): count it once.
    losses = [output.loss.detach().double() for update in made for output in update.outputs]
    loss = torch.stack(losses).sum()
    count = torch.full_like(loss, len(made))
    stats.sums["loss"] = torch.stack([loss * world_size, count])
    if len(updates) > 1:
        for number, iteration in enumerate(by_iteration, start=1):
            if iteration:
                clipped = _total(iteration).sums["clip_fraction"]
                stats.sums[f"clip_fraction_by_iteration/{number}"] = clipped
    return stats


def _total(updates: Iterable[Update]) -> Stats:
    return Stats.total(output.stats for update in updates for output in update.outputs)


def in_order(passes: Iterable[Pass]) -> list[list[float]]:
    """old_logprobs [completion][token], groups in order; here a GPU is waited for."""
    found: dict[tuple[int, int], list[float]] = {}
    for one in passes:
        assert one.old_logprobs is not None
        logprobs, masks = one.old_logprobs.cpu(), one.batch.loss_mask.bool()
        for order, row, mask in zip(one.batch.order, logprobs, masks, strict=True):
            found[order] = row[mask].tolist()
    return [found[order] for order in sorted(found)]
