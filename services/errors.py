"""Every error that crosses a boundary of the system.

    SggError                       500
    ├── InvalidInputError          422   the caller's data is wrong; sending it again cannot help
    │   └── SettingsError          422   a setting is misspelt, missing or impossible
    ├── UnauthorizedError          401   no token, or not the right one
    ├── NotFoundError              404   the named thing does not exist here
    ├── ConflictError              409   right request, wrong moment (a commit before its stage)
    │   └── SupersededError        409   a later start of the trainer has taken the run over
    ├── TooLargeError              413   over a stated limit
    ├── UnavailableError           503   retry later: starting, draining, saturated, unreachable
    │   └── QueueFullError         503   backpressure: the stream holds as much as it may
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

    def __init__(self, message: str) -> None:
        self.message = printable(message)
        super().__init__(self.message)


class InvalidInputError(SggError):
    """The caller's data is wrong."""

    status = 422

    def __init__(self, message: str, mistakes: Sequence[Mistake] = ()) -> None:
        super().__init__(message)
        self.mistakes = tuple(mistakes)


class SettingsError(InvalidInputError):
    """A setting is misspelt, missing or impossible; the message names it."""

    exit_code = 2


class UnauthorizedError(SggError):
    """No token, or not the right one."""

    status = 401


class MalformedRequestError(SggError):
    """Not a request as this service reads them."""

    status = 400


class NotFoundError(SggError):
    """The named thing does not exist here."""

    status = 404


class SlowRequestError(SggError):
    """The request did not come in time."""

    status = 408
    retryable = True


class ConflictError(SggError):
    """The request does not fit the present state."""

    status = 409


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


class TooLargeError(SggError):
    """Over a stated limit."""

    status = 413


class MediaTypeError(SggError):
    """The body does not say that it is JSON."""

    status = 415


class MisdirectedError(SggError):
    """The Host header names another service."""

    status = 421


class HeadTooLargeError(SggError):
    """Request line or headers are over a limit."""

    status = 431


class ClientGoneError(SggError):
    """The client went away before its answer; nobody reads this one."""

    status = 499


class UnavailableError(SggError):
    """Retry later."""

    status = 503
    retryable = True


class QueueFullError(UnavailableError):
    """The stream holds as much as it may."""


class WaitTimeoutError(SggError):
    """A wait ended; the message says what it waited for and how long."""

    status = 504
    retryable = True


class NoRoomError(SggError):
    """The service's disk is full."""

    status = 507
    retryable = True


class EngineError(SggError):
    """The sampling engine failed."""

    retryable = True
