"""The `prompts` stream: what is to be sampled."""

from pydantic import Field, model_validator

from services.schemas.common import (
    MAX_IMAGES,
    ChatMessage,
    Count,
    ImageRef,
    Name,
    Sampling,
)
from services.schemas.versions import Versioned


class PromptGroup(Versioned):
    """One prompt, to be sampled `sampling.n` times.

    Example: `tests/contract/golden/prompt_group.json`
    """

    group_id: Name
    """A pure function of (run, epoch, dataset index): a redelivered group is recognised."""
    attempt: Count = 0
    """Rises when the trainer asks again for a group that came back too stale."""
    incarnation: Count
    """Which start of the trainer asked; answers to an earlier one are refused."""
    epoch: Count
    index: Count
    """Row of the dataset."""
    messages: list[ChatMessage] = Field(min_length=1, max_length=32)
    images: list[ImageRef] = Field(max_length=MAX_IMAGES)
    """In the order of the messages' image parts."""
    sampling: Sampling
    min_policy_version: Count = 0
    """A server with older weights catches up before it samples this group."""
    traceparent: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
    )
    """W3C name of the trainer's span of this group: the parent of the server's."""

    @model_validator(mode="after")
    def _trainable(self) -> "PromptGroup":
        if self.sampling.renormalises and not self.sampling.accept_renormalised:
            raise ValueError(
                "json_schema, grammar, top_p and top_k renormalise the logprobs, which biases "
                "training: set sampling.accept_renormalised if the trainer applies the same mask"
            )
        return self

    @property
    def work_id(self) -> str:
        """Identity on the queue: `group_id`, attempt and incarnation."""
        return f"{self.group_id}#{self.incarnation}.{self.attempt}"
