"""A group once it is sampled and scored: what the ranks train on, and what a run keeps of it."""

from pydantic import Field

from services.schemas.common import Message
from services.schemas.prompts import PromptGroup
from services.schemas.rewards import BoxSpaceName, ImageSize, Notation, ReferenceGraph, Reward
from services.schemas.rollouts import RolloutGroup
from services.schemas.versions import Versioned


class GroupReference(Message):
    """The annotated graph of a group's image, as the reward service got it.

    Example: `{"image_size": [160, 120], "box_space": "relative_1000", "graph": {"objects":
    [{"id": "man.1", "bbox": [10, 20, 60, 100]}], "relationships": []}}`
    """

    image_size: ImageSize
    """Width and height of the upright image, in pixels."""
    box_space: BoxSpaceName
    """The space of the completions' boxes."""
    notation: Notation = Field(default="json", exclude_if=lambda notation: notation == "json")
    """What completions are written in."""
    graph: ReferenceGraph
    """Boxes in pixels of the image."""


class TrainGroup(Versioned):
    """A sampled and scored group, as every rank receives it."""

    position: int
    """Place in the run's data order (`trainer.collection.cursor`)."""
    index: int
    """Row of the dataset, for the image."""
    prompt: PromptGroup | None = None
    """What was asked."""
    rollout: RolloutGroup
    rewards: list[Reward]
    advantages: list[float] = Field(default_factory=list)
    """One for each completion; empty until the step's batch is formed
    (`trainer.collection.advantages`)."""
    element_advantages: list[list[float]] = Field(
        default_factory=list, exclude_if=lambda all_: not all_
    )
    """With `algorithm.credit = "element"`: for each completion those of its K + 1 places, before
    each element of `Reward.credit` and behind the last."""
    reference: GroupReference | None = None
    """None where the group comes from no dataset, and in records of earlier releases."""

    @property
    def oldest_policy_version(self) -> int:
        """The version that the group's stalest token was sampled with."""
        return min(c.oldest_policy_version for c in self.rollout.completions)
