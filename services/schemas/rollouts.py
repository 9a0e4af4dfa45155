"""Sampled groups: the `rollouts` stream and `POST /v1/rollouts`."""

from typing import Annotated, Literal

from pydantic import Field

from services.schemas.common import (
    MAX_IMAGES,
    ChatMessage,
    Count,
    ImageRef,
    Message,
    ModelRunner,
    Name,
    Sampling,
    TokenId,
)
from services.schemas.versions import Versioned


class VersionSpan(Message):
    """Tokens [start, end) of a completion were sampled with `policy_version`.

    Example: `{"policy_version": 3, "start": 0, "end": 41}`
    """

    policy_version: Count
    start: Count
    end: Count


class Completion(Message):
    """One sampled answer. All lists have the length L of the completion.

    Example: `tests/contract/golden/rollout_group.json`
    """

    text: str
    token_ids: list[TokenId]
    rollout_logprobs: list[Annotated[float, Field(le=1e-4)]]
    """[L] natural log of each token's probability in the distribution that it was sampled from:
    after temperature and suppressed tokens."""
    finish_reason: Literal["stop", "length", "abort"]
    policy_versions: list[VersionSpan]
    """In order, covering 0..L."""
    token_ends: list[Count] | None = Field(default=None, exclude_if=lambda ends: ends is None)
    """[L] where asked for: the characters of `text` up to each token's end. It is the same as
    before a token where that ends inside a character, or is not part of the text."""
    kept_tokens: str | None = Field(default=None, exclude_if=lambda kept: kept is None)
    """Where asked for: the tokens that each was drawn from (`services.models.kept_tokens`)."""

    @property
    def oldest_policy_version(self) -> int:
        """The version its stalest token was sampled with."""
        return min(span.policy_version for span in self.policy_versions)


class RolloutGroup(Versioned):
    """A sampled group on the `rollouts` stream.

    Example: `tests/contract/golden/rollout_group.json`
    """

    group_id: Name
    attempt: Count
    incarnation: Count
    server_id: Name
    prompt_token_ids: list[TokenId]
    """With image placeholders expanded: one id for each visual token."""
    completions: list[Completion] = Field(min_length=1)
    sampling_s: float = Field(ge=0)
    """Seconds from claim to the last token."""
    renormalised: bool = False
    """Whether rollout_logprobs are of a part of the vocabulary only (`Sampling.renormalises`)."""
    model_runner: ModelRunner | None = None
    """Which one the vLLM that sampled uses; null where another engine did."""

    @property
    def work_id(self) -> str:
        """The identity of the `PromptGroup` that it answers."""
        return f"{self.group_id}#{self.incarnation}.{self.attempt}"


MAX_INLINE_BYTES = 6_000_000
"""An encoded image inside a request has so many at most: 8 MB as base64, which a body may have."""


class InlineImage(Message):
    """An image inside its request.

    Example: `{"data": "data:image/png;base64,iVBORw0…"}`
    """

    data: str = Field(max_length=11_000_000)
    """Base64, or a `data:image/…;base64,…` URI. No other URL is ever fetched."""


class RolloutRequest(Versioned):
    """Body of `POST /v1/rollouts`.

    Example: `tests/contract/golden/rollout_request.json`
    """

    messages: list[ChatMessage] = Field(min_length=1, max_length=32)
    images: list[ImageRef | InlineImage] = Field(default=[], max_length=MAX_IMAGES)
    """In the order of the messages' image parts; an `ImageRef` is of the server's store."""
    sampling: Sampling = Sampling()
    adapter: Name | None = None
    """A LoRA adapter of the server's settings to sample with, instead of the policy alone."""


class RolloutResponse(Versioned):
    """Answer of `POST /v1/rollouts`."""

    server_id: Name
    prompt_token_ids: list[TokenId]
    completions: list[Completion]
    renormalised: bool = False
    """Whether rollout_logprobs are of a part of the vocabulary only (`Sampling.renormalises`)."""
