"""What a sampling engine promises. There are two: `VllmEngine`, and `FakeEngine` without a model.

An engine samples, and exchanges its weights while paused. Which version may be loaded when is not
its business: `rollout_service.updates` decides that.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.errors import InvalidInputError, NotFoundError
from services.schemas.chat import ChatRequest
from services.schemas.common import ChatMessage, ImagePart, ModelRunner, Sampling
from services.schemas.rollouts import Completion
from services.schemas.weights import IpcHandle, Rendezvous, WeightManifest

Shape = tuple[int, ...]
_NO_CHAT = 'this engine has no OpenAI API: set rollout.engine to "vllm"'


@dataclass(frozen=True, kw_only=True, slots=True)
class FileWeights:
    """All tensors of a version in a safetensors file, verified."""

    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterWeights:
    """A LoRA adapter in a folder of PEFT's layout, verified."""

    folder: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class BroadcastWeights:
    """Tensors that the trainer sends while they are loaded, through what `connect` opened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IpcWeights:
    """Tensors in the memory of the server's own GPU, by name."""

    handles: Mapping[str, IpcHandle]


Weights = FileWeights | AdapterWeights | BroadcastWeights | IpcWeights
"""Where the tensors of a version are when it is loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineResult:
    """The completions of one prompt.

    Example: `EngineResult(prompt_token_ids=[1, 6, 6, 6, 6, 40], completions=[...])`
    """

    prompt_token_ids: list[int]
    """With image placeholders expanded: one id for each visual token."""
    completions: list[Completion]
    """`sampling.n` of them."""


class Engine(ABC):
    """Samples from one model, whose weights change. All methods run on one event loop."""

    gpu: str | None = None
    """UUID of its GPU, known before `start`; None on CPU."""
    num_elements: int | None = None
    """That a version has at most, known after `start`; None where the engine does not tell."""
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
    async def sample(
        self,
        messages: Sequence[ChatMessage],
        images: Sequence[bytes],
        sampling: Sampling,
        *,
        request_id: str,
        adapter: str | None = None,
    ) -> EngineResult:
        """Sample one group. Waits while the engine is paused; cancelling it frees what it held.

        Args:
            messages: The chat so far, with an `ImagePart` for each image.
            images: Encoded files (PNG, JPEG), in the order of the parts.
            sampling: `rollout_logprobs` are of the distribution that this describes.
            request_id: Unique among requests in flight.
            adapter: Of the settings; None samples from the policy.

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
    async def check_tensors(self, shapes: Mapping[str, Shape], *, partial: bool) -> None:
        """Whether these are exactly the tensors that a version of this model consists of.

        Args:
            shapes: Of the version, by name.
            partial: Whether it may be without some.

        Raises:
            InvalidInputError: One is missing, unknown or of another shape; the message names it.
        """

    @abstractmethod
    async def check_adapter(self, layers: Mapping[str, Shape]) -> None:
        """Whether an adapter of these layers can be the policy.

        Args:
            layers: Names of weights, and their shape.

        Raises:
            InvalidInputError: One is unknown, of another shape, or cannot be adapted.
        """

    @abstractmethod
    async def pause(self) -> None:
        """Freeze sampling: no token comes until `resume`. Requests in flight are kept."""

    @abstractmethod
    async def connect(self, rendezvous: Rendezvous) -> None:
        """Meet the trainer for broadcasts, while sampling goes on; replaces an earlier connection.

        Raises:
            EngineError: This engine cannot, or the trainer was not there.
        """

    @abstractmethod
    async def load_weights(self, weights: Weights, manifest: WeightManifest) -> None:
        """Replace all weights, clear the caches that depend on them. Only while paused; repeatable.

        Args:
            weights: Where the tensors of `manifest` are.
            manifest: Its version labels the tokens sampled from now on.

        Raises:
            EngineError: The model may be half loaded: load again, or never resume.
        """

    @abstractmethod
    async def resume(self) -> None:
        """Go on sampling, with the weights of now."""

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
