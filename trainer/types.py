"""What the trainer's parts hand to each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from services.run_folder.records import GroupState
from services.schemas.common import Message
from services.schemas.groups import TrainGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedGroup:
    """A group that was not trained on, for the run's records; it stays on rank 0."""

    state: GroupState
    position: int
    group_id: str
    index: int
    """Row of the dataset."""
    group: TrainGroup | None
    """Its answers, with rewards where it has some; None where no answer came that can be read."""
    reason: str = ""
    """Why it is dead."""


class Outcome(Message):
    """What became of groups besides those trained on, since the last step."""

    stale: list[str] = Field(default_factory=list)
    """Group ids that came back beyond `max_token_lag`; they were asked for again."""
    dead: list[str] = Field(default_factory=list)
    """Group ids that will never be trained on: unreadable images, poisoned prompts, answers that
    cannot be used. Others took their place."""
    replaced: list[str] = Field(default_factory=list)
    """Group ids of zero variance in their rewards (`algorithm.dynamic_sampling`); others took their
    place."""
    skipped: list[str] = Field(default_factory=list)
    """Group ids of batches and mini-batches all of whose updates were skipped, since a number was
    not finite."""
    positions: list[int] = Field(default_factory=list)
    """Positions of dead, replaced and skipped groups: done with this step."""


class StepBatch(Message):
    """The groups of one step, on rank 0.

    Other ranks have a batch without groups, and get those that they train
    (`trainer.batches.shares`).
    """

    groups: list[TrainGroup]
    outcome: Outcome
    num_sampling: int = 0
    """Groups that were with the rollout servers when the batch was formed."""
    num_scoring: int = 0
    """Groups that were with the reward service then."""
    num_ready: int = 0
    """Scored groups that were left for later steps."""
    num_servers: int = 0
    """Rollout servers that were registered then."""
    sampler_idle_fraction: float | None = None
    """Share of the rollout servers' time since the last batch in which they had nothing to sample
    (`trainer.collection.idle`); None where no server was seen."""
    unused: list[UnusedGroup] = Field(default_factory=list)
    """Groups that `outcome` names and that were not trained on, for the run's records."""

    def with_skipped(self, group_ids: Sequence[str]) -> "StepBatch":
        """This batch, some of whose own groups gave no update."""
        skipped = [*self.outcome.skipped, *group_ids]
        return self.model_copy(
            update={"outcome": self.outcome.model_copy(update={"skipped": skipped})}
        )

    def after(self, skipped: Sequence["StepBatch"]) -> "StepBatch":
        """This batch, whose step also does away with the groups of those that were skipped."""
        outcomes = [*(batch.outcome for batch in skipped), self.outcome]
        lists = {
            name: [each for outcome in outcomes for each in getattr(outcome, name)]
            for name in Outcome.model_fields
        }
        for group in (group for batch in skipped for group in batch.groups):
            lists["skipped"].append(group.rollout.group_id)
            lists["positions"].append(group.position)
        unused = [each for batch in skipped for each in batch.unused] + self.unused
        return self.model_copy(update={"outcome": Outcome(**lists), "unused": unused})
