"""The `prompts` stream: what is to be sampled."""

from typing import Literal

from pydantic import Field

from services.schemas.common import ChatMessage, ImageRef, Message, Name, Sampling


class PromptGroup(Message):
    """One prompt, to be sampled `sampling.n` times.

    Example: `tests/contract/golden/prompt_group.json`
    """

    version: Literal[1] = 1
    group_id: Name
    """A pure function of (run, epoch, dataset index): a redelivered group is recognised."""
    attempt: int = Field(default=0, ge=0)
    """Rises when the trainer asks again for a group that came back too stale."""
    incarnation: int = Field(ge=0)
    """Which start of the trainer asked; answers to an earlier one are fenced off."""
    epoch: int = Field(ge=0)
    index: int = Field(ge=0)
    """Row of the dataset."""
    messages: list[ChatMessage] = Field(min_length=1, max_length=32)
    image: ImageRef
    sampling: Sampling
    min_policy_version: int = Field(default=0, ge=0)
    """A server with older weights catches up before it samples this group."""

    @property
    def work_id(self) -> str:
        """Identity on the queue: `group_id`, attempt and incarnation."""
        return f"{self.group_id}#{self.incarnation}.{self.attempt}"
