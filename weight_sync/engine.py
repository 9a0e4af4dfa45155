"""What weights need of the engine that loads them, and how it is told where they are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from services.schemas.weights import CommitRequest, Rendezvous, WeightManifest

Shape = tuple[int, ...]


class Staged:
    """A version that may be committed; each transport has its own."""

    attempts: ClassVar[int] = 2
    """How often loading it may be tried without the trainer."""

    def take(self, request: CommitRequest) -> None:
        """Note what the commit says of where the tensors are.

        Raises:
            InvalidInputError: It does not say all that it has to.
        """

    def close(self) -> None:
        """Give back what it holds. Safe to call twice."""


class LoadableEngine(ABC):
    """An engine whose weights can be exchanged. All methods run on one event loop."""

    gpus: tuple[str, ...] = ()
    """UUIDs of its GPUs, known before it has started: one for each part of its model; none on CPU.
    """
    num_elements: int | None = None
    """The most that a version has, known after the start; None where the engine does not tell."""

    @abstractmethod
    async def check_tensors(self, shapes: Mapping[str, Shape], *, partial: bool) -> None:
        """Whether these are exactly the tensors that a version of this model consists of.

        Args:
            shapes: The version's, by name.
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
    async def load_weights(self, staged: Staged, manifest: WeightManifest) -> None:
        """Replace all weights, clear the caches that depend on them. Only while paused; repeatable.

        Args:
            staged: Knows where the tensors of `manifest` are.
            manifest: Its version labels the tokens sampled from now on.

        Raises:
            EngineError: The model may be half loaded: load again, or never resume.
        """

    @abstractmethod
    async def resume(self) -> None:
        """Go on sampling, with the weights of now."""
