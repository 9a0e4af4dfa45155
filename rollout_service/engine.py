"""What a sampling engine promises. There are two: `VllmEngine`, and `FakeEngine` without a model.

An engine samples, and exchanges its weights while paused. It does not choose which version is
loaded when: `weight_sync.updater` decides that.
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.errors import InvalidInputError, NotFoundError
from services.schemas.chat import ChatRequest
from services.schemas.common import ChatMessage, ImagePart, ModelRunner, Sampling
from services.schemas.rollouts import Completion
from weight_sync.engine import LoadableEngine, Shape

_NO_CHAT = 'this engine has no OpenAI API: set rollout.engine to "vllm"'


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRequest:
    """What one group is sampled from.

    Example: `GroupRequest(messages=[...], images=[png], sampling=Sampling(n=8), request_id="r1")`
    """

    messages: Sequence[ChatMessage]
    """The chat so far, with an `ImagePart` for each image."""
    images: Sequence[bytes] = ()
    """Encoded files (PNG, JPEG), in the order of the parts."""
    sampling: Sampling
    """`rollout_logprobs` are of the distribution that this describes."""
    request_id: str
    """Unique among requests in flight."""
    adapter: str | None = None
    """A name of `rollout.adapters`; None samples from the policy."""
    traceparent: str | None = None
    """The span that the group's is under; None for the current one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineResult:
    """The completions of one prompt.

    Example: `EngineResult(prompt_token_ids=[1, 6, 6, 6, 6, 40], completions=[...])`
    """

    prompt_token_ids: list[int]
    """With image placeholders expanded: one id for each visual token."""
    completions: list[Completion]
    """`sampling.n` of them."""


class Engine(LoadableEngine):
    """Samples from one model, whose weights change. All methods run on one event loop."""

    model_runner: ModelRunner | None = None
    """Which one vLLM uses, known after `start`; None in another engine."""

    @abstractmethod
    async def start(self) -> None:
        """Load the model's own weights, which are version 0. Called once; takes up to minutes.

        Raises:
            EngineError: The model cannot be loaded.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Give everything back. Safe to call at any time, also twice."""

    @abstractmethod
    async def sample(self, request: GroupRequest) -> EngineResult:
        """Sample one group. Waits while the engine is paused; cancelling it frees what it held.

        Raises:
            InvalidInputError: The prompt does not fit the model; the same everywhere.
            EngineError: The engine failed; another server may do better.
        """

    async def chat(
        self, request: ChatRequest, images: Sequence[bytes]
    ) -> dict[str, Any] | AsyncIterator[str]:
        """Complete a chat by OpenAI's API; engines may do without.

        Args:
            request: What is asked for.
            images: Encoded files, in the order of the parts.

        Returns:
            The answer's JSON, or server-sent events where the request wants a stream.

        Raises:
            NotFoundError: There is no such model, or this engine cannot chat.
            InvalidInputError: The request does not fit the model.
            EngineError: The engine failed.
        """
        raise NotFoundError(_NO_CHAT)

    async def models(self) -> dict[str, Any]:
        """What `chat` may be asked for, as OpenAI lists models.

        Raises:
            NotFoundError: This engine cannot chat.
        """
        raise NotFoundError(_NO_CHAT)

    @abstractmethod
    async def check_health(self) -> None:
        """Raises `EngineError` when the engine is dead: only a new process helps."""


def check_images(messages: Sequence[ChatMessage], num_images: int, most: int) -> None:
    """Refuse prompts whose image parts and images do not go together, or are too many.

    Args:
        messages: With an image part for each image.
        num_images: That were sent.
        most: `rollout.max_images_per_prompt`.

    Raises:
        InvalidInputError: They do not.
    """
    if num_images > most:
        raise InvalidInputError(
            f"the prompt has {num_images} images; this server takes {most}: raise "
            "rollout.max_images_per_prompt"
        )
    count = sum(isinstance(part, ImagePart) for message in messages for part in message.content)
    if count != num_images:
        raise InvalidInputError(
            f"the messages have {count} image parts and {num_images} images were sent: "
            "send one image for each part"
        )


def compare_tensors(
    expected: Mapping[str, Shape],
    given: Mapping[str, Shape],
    optional: Sequence[str] = (),
    *,
    partial: bool = False,
) -> None:
    """Refuse a version that is not all of the model and nothing else.

    Args:
        expected: Names and shapes of the model.
        given: Names and shapes of the version.
        optional: May be given beside `expected`: weights that the model ties to another.
        partial: Whether some of `expected` may be left out.

    Raises:
        InvalidInputError: It names the first difference and counts the others.
    """
    missing = sorted(expected.keys() - given.keys())
    unknown = sorted(given.keys() - expected.keys() - set(optional))
    if missing and not partial:
        raise InvalidInputError(f"{len(missing)} tensors of the model are missing: {missing[0]}, …")
    if unknown:
        raise InvalidInputError(f"{len(unknown)} tensors are not of the model: {unknown[0]}, …")
    for name, shape in expected.items():
        if given.get(name, shape) != shape:
            raise InvalidInputError(f"{name} has shape {given[name]}; the model's has {shape}")
