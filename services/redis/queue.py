"""What the work queue hands out: leases of items, and what is told of dead ones."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A claimed item."""

    stream: str
    entry_id: str
    """Position in the stream."""
    work_id: str
    body: bytes
    """The message as JSON."""
    failures: list[str] = field(default_factory=list)
    """Errors of earlier attempts, oldest first."""
    delivery: int = 1
    """How often this entry was handed out: tells a lease from an expired one on the same entry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadNotice:
    """An item that ended without a result, without its body."""

    entry_id: str
    stream: str
    work_id: str
    failures: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter(DeadNotice):
    """An item that ended without a result, whole."""

    body: bytes
