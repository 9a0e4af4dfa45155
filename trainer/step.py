"""One optimizer step: groups taken, laid out and trained on, until all numbers are finite."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.errors import SggError
from services.schemas.common import Message
from trainer.batches.preparation import Prepared, PreparedBatches
from trainer.connection import ServiceConnection
from trainer.policy.engine import PolicyEngine
from trainer.ranks.group import Ranks
from trainer.records.files import RunRecords
from trainer.records.phases import PhaseClock
from trainer.types import StepBatch, StepOutput, TrainGroup

logger = logging.getLogger(__name__)

MAX_SKIPPED = 5
"""Batches in a row that give no step, after which the run ends."""
_NUM_LISTED = 8


class NotFiniteError(SggError):
    """The policy gives no finite numbers; the message names groups."""


class _Found(Message):
    """A rank's groups with a log-probability that is not finite."""

    group_ids: list[str]


@dataclass(frozen=True, slots=True)
class StepTraining:
    """Trains steps of a run; every rank has one and calls the same."""

    services: ServiceConnection
    batches: PreparedBatches
    engine: PolicyEngine
    records: RunRecords
    ranks: Ranks

    def train(
        self, step: int, learning_rate: float, clock: PhaseClock
    ) -> tuple[StepBatch, dict[str, float]]:
        """Make a step, with as many batches as it takes until one gives finite numbers.

        Args:
            step: From 0.
            learning_rate: Of the step.
            clock: Of the step.

        Returns:
            The batch, whose outcome names the groups of skipped ones, and what to log.

        Raises:
            NotFiniteError: `MAX_SKIPPED` batches in a row gave none.
            StopAskedError: The run is to stop.
        """
        skipped: list[StepBatch] = []
        while True:
            with clock("wait"):
                batch = self.batches.take(step)
            with clock("prepare"):
                prepared = self.batches.prepared()
            with clock("train"):
                output = self.engine.train_step(prepared.micro_batches, learning_rate)
                learned = self.ranks.combine(output.stats) | prepared.metrics
            with clock("record"):
                self.records.rollouts(step, prepared.groups, output.policy_logprobs)
            if not output.skipped:
                break
            skipped.append(batch)
            self._explain(step, len(skipped), batch, prepared, output)
            self.services.skip(batch)
            self.services.look_for_stop()
        for earlier in reversed(skipped):
            batch = batch.after(earlier)
        own = {"grad_norm": output.grad_norm, "learning_rate": learning_rate}
        return batch, learned | own | {"num_skipped": len(skipped)}

    def _explain(
        self, step: int, count: int, batch: StepBatch, prepared: Prepared, output: StepOutput
    ) -> None:
        """Name the groups in the log, or end all ranks with them."""
        mine = _Found(group_ids=not_finite(prepared.groups, output.policy_logprobs))
        others = self.ranks.gather(None if self.ranks.is_main else mine, _Found)
        found = [name for each in (mine, *others) for name in each.group_ids]
        where = (
            f"log-probabilities of {_listed(found)} are not finite"
            if found
            else f"the loss or a gradient of {_listed(_ids(batch.groups))} is not finite"
        )
        if self.ranks.is_main:
            logger.warning("step %d is skipped, and tried with other groups: %s", step, where)
        failure = NotFiniteError(
            f"step {step} was skipped {count} times in a row, the last time because {where}. Look "
            f"at their images and rewards (sgg-rl rollouts <run> --step {step}); if groups of all "
            "kinds fail, go back to an earlier checkpoint with a lower trainer.learning_rate "
            "(docs/operations.md)"
        )
        self.ranks.broadcast(failure if count == MAX_SKIPPED else mine, _Found)


def not_finite(
    groups: Sequence[TrainGroup], policy_logprobs: Sequence[Sequence[float]]
) -> list[str]:
    """Ids of groups with a log-probability that is not finite.

    Args:
        groups: Of one rank.
        policy_logprobs: [completion][token], in the order of the groups.
    """
    rows = iter(policy_logprobs)
    finite = [[all(map(math.isfinite, next(rows))) for _ in g.rollout.completions] for g in groups]
    return _ids([group for group, each in zip(groups, finite, strict=True) if not all(each)])


def _ids(groups: Sequence[TrainGroup]) -> list[str]:
    return [group.rollout.group_id for group in groups]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NUM_LISTED
    return ", ".join(names[:_NUM_LISTED]) + (f" and {more} more groups" if more > 0 else "")
