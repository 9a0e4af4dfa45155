"""What the trainer's parts hand to each other."""

from dataclasses import dataclass

from pydantic import Field

from services.schemas.common import Message
from services.schemas.rewards import Reward
from services.schemas.rollouts import RolloutGroup
from trainer.algorithms.stats import Stats


class TrainGroup(Message):
    """A sampled and scored group, as every rank receives it."""

    position: int
    """Place in the run's data order (`trainer.cursor`)."""
    index: int
    """Row of the dataset, for the image."""
    rollout: RolloutGroup
    rewards: list[Reward]
    advantages: list[float]

    @property
    def oldest_policy_version(self) -> int:
        """The version that the group's stalest token was sampled with."""
        return min(c.oldest_policy_version for c in self.rollout.completions)


class Outcome(Message):
    """What became of groups besides those trained on, since the last step."""

    stale: list[str] = Field(default_factory=list)
    """Group ids that came back beyond `max_policy_lag`; they were asked for again."""
    dead: list[str] = Field(default_factory=list)
    """Group ids that ended in the dead letters; others took their place."""


class Batch(Message):
    """The groups of one step."""

    groups: list[TrainGroup]
    outcome: Outcome


@dataclass(slots=True, kw_only=True)
class StepOutput:
    """What the engine reports of one optimizer step, of this rank."""

    stats: Stats
    grad_norm: float
    """Over all ranks, before clipping."""
    policy_logprobs: list[list[float]]
    """[completion][token], in the order of the rank's groups."""
