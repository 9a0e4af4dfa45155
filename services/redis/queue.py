"""What a work queue promises: `RedisQueue`, and `MemoryQueue` for tests and one process.

Delivery is at least once; the outcome is exactly one. An item is enqueued once (`work_id`), and
ends once: completed onto the next stream, acknowledged, or dead. Whoever finishes first wins,
whoever holds the lease.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    """That an item ended without a result."""

    entry_id: str
    stream: str
    work_id: str
    failures: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter(DeadNotice):
    """An item that ended without a result."""

    body: bytes


class WorkQueue(ABC):
    """Streams of work with leases. Streams are created on first use."""

    @abstractmethod
    async def enqueue(
        self, stream: str, work_id: str, body: bytes, *, max_length: int | None = None
    ) -> bool:
        """Add an item unless one with this `work_id` was ever added to this stream.

        Returns:
            Whether it was added. Calling again after an unclear failure is safe.

        Raises:
            QueueFullError: The stream holds `max_length` items; nothing was added.
        """

    @abstractmethod
    async def claim(
        self, streams: str | Sequence[str], consumer: str, *, lease_s: float, block_s: float
    ) -> Lease | None:
        """Take one item, an expired lease first; wait up to `block_s` seconds for one.

        Args:
            streams: One, or several of one consumer group: an item of an earlier one comes first.
                Within a stream, items come in order.
            consumer: Who holds the lease.
            lease_s: Others' leases that were not renewed for that long have expired.
            block_s: 0 does not wait.
        """

    @abstractmethod
    async def renew(self, lease: Lease, consumer: str) -> bool:
        """Restart the lease's clock. False when another consumer holds it or the item has ended."""

    @abstractmethod
    async def complete(
        self, lease: Lease, *, result_stream: str | None = None, result: bytes = b""
    ) -> bool:
        """End an item; put `result` on `result_stream` under the same `work_id`, in one move.

        Returns:
            Whether this call ended it; False when it had already ended.
        """

    @abstractmethod
    async def fail(self, lease: Lease, error: str, *, max_deliveries: int) -> bool:
        """Record a failed attempt; the item is claimable at once, or dead after enough of them.

        Returns:
            Whether the item is now dead.
        """

    @abstractmethod
    async def bury(self, stream: str, work_id: str, body: bytes, error: str) -> bool:
        """Put an item that had ended among the dead: what it brought turned out to be of no use.

        Returns:
            Whether this call did; False when it is among them already.
        """

    @abstractmethod
    async def release(self, lease: Lease) -> None:
        """Hand a lease back unused (draining): claimable at once, no failure recorded."""

    @abstractmethod
    async def length(self, streams: str | Sequence[str]) -> int:
        """Items on the streams that have not ended, claimed ones included."""

    @abstractmethod
    async def purge(self, stream: str) -> list[str]:
        """End every item without result; their work ids. For a new trainer's fencing."""

    @abstractmethod
    async def dead_letters(self) -> list[DeadLetter]:
        """The dead items that are kept, oldest first."""

    @abstractmethod
    async def dead_notices(self, after: str = "-") -> list[DeadNotice]:
        """The next dead items, oldest first, up to 100: cheap, however large they are.

        Args:
            after: Entry id of the last one that was read; "-" for none.
        """

    @abstractmethod
    async def num_dead(self) -> int:
        """Number of dead items that are kept."""

    @abstractmethod
    async def drop(self, entry_id: str) -> bool:
        """Forget a dead item. False when there is no such item."""

    async def aclose(self) -> None:  # noqa: B027 - most queues hold nothing
        """Give back connections."""


def stream_names(streams: str | Sequence[str]) -> list[str]:
    """One name or several, as a list."""
    return [streams] if isinstance(streams, str) else list(streams)
