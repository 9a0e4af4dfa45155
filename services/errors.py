"""Every error that crosses a boundary of the system.

    SggError                       500
    ├── InvalidInputError          422   the caller's data is wrong; sending it again cannot help
    │   └── SettingsError          422   a setting is misspelt, missing or impossible
    ├── UnauthorizedError          401   no token, or not the right one
    ├── CrossOriginError           403   a page of another origin asks for a change
    ├── NotFoundError              404   the named thing does not exist here
    ├── ConflictError              409   right request, wrong moment (a commit before its stage)
    │   └── SupersededError        409   a later start of the trainer has taken the run over
    ├── TooLargeError              413   over a stated limit
    ├── UnavailableError           503   retry later: starting, draining, saturated, unreachable
    ├── WaitTimeoutError           504   a wait ended; the message says what it waited for
    ├── NoRoomError                507   the service's disk is full; retry when there is room
    └── EngineError                500   the sampling engine failed; retry on another server

Model output is never an error: a completion that does not parse has a status
(`services.schemas.rewards`). HTTP status and `retryable` live on the class, so that every service
maps them in one way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from services.printable import printable


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong in a request."""

    path: str
    """Where, such as `body.groups.0.completions`."""
    message: str


class SggError(Exception):
    """The service failed; its log has the reason.

    Root of all errors of this project. The message says what to do. What it quotes, from data or
    from another service, cannot steer a terminal.
    """

    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1
    """The exit code of a command that ends with it."""

    def __init_subclass__(cls, *, status: int | None = None, retryable: bool = False) -> None:
        """Args: status: The class's HTTP status, where it is not that of its base."""
        cls.status = cls.status if status is None else status
        cls.retryable = cls.retryable or retryable

    def __init__(self, message: str) -> None:
        self.message = printable(message)
        super().__init__(self.message)


class InvalidInputError(SggError, status=422):
    """The caller's data is wrong."""

    def __init__(self, message: str, mistakes: Sequence[Mistake] = ()) -> None:
        super().__init__(message)
        self.mistakes = tuple(mistakes)


class SettingsError(InvalidInputError):
    """A setting is misspelt, missing or impossible; the message names it."""

    exit_code = 2


class UnauthorizedError(SggError, status=401):
    """No token, or not the right one."""


class CrossOriginError(SggError, status=403):
    """A page of another origin asks for a change."""


class MalformedRequestError(SggError, status=400):
    """Not a request as this service reads them."""


class NotFoundError(SggError, status=404):
    """The named thing does not exist here."""


class SlowRequestError(SggError, status=408, retryable=True):
    """The request did not come in time."""


class ConflictError(SggError, status=409):
    """The request does not fit the present state."""


class SupersededError(ConflictError):
    """A later start of the trainer has taken the run over: this one must stop, and stay stopped."""

    exit_code = 3

    def __init__(self, incarnation: int, later: int | None = None) -> None:
        """Args: later: The later incarnation, where it is known."""
        by = "a later one" if later is None else f"incarnation {later}"
        super().__init__(
            f"trainer incarnation {incarnation} is superseded: {by} of this run has started, so "
            "this one stops"
        )


class TooLargeError(SggError, status=413):
    """Over a stated limit."""


class MediaTypeError(SggError, status=415):
    """The body is of a media type that is not read here."""


class MisdirectedError(SggError, status=421):
    """The Host header names another service."""


class HeadTooLargeError(SggError, status=431):
    """Request line or headers are over a limit."""


class ClientGoneError(SggError, status=499):
    """The client went away before its answer; nobody reads this one."""


class UnavailableError(SggError, status=503, retryable=True):
    """Retry later."""


class WaitTimeoutError(SggError, status=504, retryable=True):
    """A wait ended; the message says what it waited for and how long."""


class NoRoomError(SggError, status=507, retryable=True):
    """The service's disk is full."""


class EngineError(SggError, retryable=True):
    """The sampling engine failed."""
