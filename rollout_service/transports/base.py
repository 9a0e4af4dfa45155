"""What a transport promises: a version's bytes are at hand, or will be, when it is loaded."""

from abc import ABC, abstractmethod
from typing import ClassVar

from rollout_service.engine import Weights
from services.schemas.weights import CommitRequest, StageRequest


class Staged(ABC):
    """A version that may be committed."""

    attempts: ClassVar[int] = 2
    """How often loading it may be tried without the trainer."""

    @abstractmethod
    def weights(self, request: CommitRequest) -> Weights:
        """Where its tensors are.

        Raises:
            InvalidInputError: The commit does not say all that it has to.
        """

    def close(self) -> None:  # noqa: B027  # some hold nothing
        """Give back what it holds. Safe to call twice."""


class Transport(ABC):
    """One way for the bytes of a version to get here."""

    @abstractmethod
    async def stage(self, request: StageRequest) -> Staged:
        """Bring in and verify a version; sampling goes on. Its tensors are the model's.

        Raises:
            InvalidInputError: The bytes are not what the manifest says, or this server lacks what
                the transport needs.
            NotFoundError: There are no bytes.
            EngineError: The trainer was not there.
        """
