"""The work queue in one process, without Redis: the same promises, for tests."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, count

from services.redis.keys import CONSUMER_GROUPS
from services.redis.queue import DeadLetter, DeadNotice, Lease, RedisQueue, stream_names

_POLL_S = 0.02
"""How often a waiting reader looks for expired leases."""


@dataclass(slots=True)
class _Entry:
    work_id: str
    body: bytes
    holder: str | None = None
    delivery: int = 0
    leased_at: float = 0.0


@dataclass(slots=True)
class _Stream:
    entries: dict[str, _Entry] = field(default_factory=dict)
    """Entry id to entry, in order of arrival."""
    seen: dict[str, str] = field(default_factory=dict)
    """Work id to its present entry id."""
    done: set[str] = field(default_factory=set)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def finish(self, entry_id: str, work_id: str) -> bool:
        """End an item once, whichever entry it is on now. False when it had ended."""
        first = work_id not in self.done
        self.done.add(work_id)
        for present in {entry_id, self.seen.get(work_id, entry_id)}:
            self.entries.pop(present, None)
        return first

    def holds(self, lease: Lease) -> bool:
        """Whether the lease is the present one."""
        entry = self.entries.get(lease.entry_id)
        return entry is not None and entry.holder is not None and entry.delivery == lease.delivery


class MemoryQueue(RedisQueue):
    """Streams in dictionaries; between two awaits of one event loop every move is atomic."""

    def __init__(self, *, max_expiries: int = 15) -> None:
        self._streams = {name: _Stream() for name in CONSUMER_GROUPS}
        self._dead: dict[str, DeadLetter] = {}
        self._ids = count(1)
        self._max_expiries = max_expiries

    async def enqueue(self, stream: str, work_id: str, body: bytes) -> bool:
        """See `RedisQueue.enqueue`."""
        items = self._streams[stream]
        if work_id in items.seen:
            return False
        self._add(stream, work_id, body)
        return True

    async def claim(
        self, streams: str | Sequence[str], consumer: str, *, lease_s: float, block_s: float
    ) -> Lease | None:
        """See `RedisQueue.claim`."""
        names = stream_names(streams)
        deadline = time.monotonic() + block_s
        while True:
            expired = (self._claim_expired(name, consumer, lease_s) for name in names)
            new = (self._claim_new(name, consumer) for name in names)
            lease = next((lease for lease in chain(expired, new) if lease), None)
            if lease or time.monotonic() >= deadline:
                return lease
            await asyncio.sleep(_POLL_S)

    async def renew(self, lease: Lease, consumer: str) -> bool:
        """See `RedisQueue.renew`."""
        items = self._streams[lease.stream]
        if not items.holds(lease) or items.entries[lease.entry_id].holder != consumer:
            return False
        items.entries[lease.entry_id].leased_at = time.monotonic()
        return True

    async def complete(
        self, lease: Lease, *, result_stream: str | None = None, result: bytes = b""
    ) -> bool:
        """See `RedisQueue.complete`."""
        items = self._streams[lease.stream]
        if not items.finish(lease.entry_id, lease.work_id):
            return False
        items.failures.pop(lease.work_id, None)
        if result_stream:
            await self.enqueue(result_stream, lease.work_id, result)
        return True

    async def fail(self, lease: Lease, error: str, *, max_deliveries: int) -> bool:
        """See `RedisQueue.fail`."""
        items = self._streams[lease.stream]
        if not items.holds(lease):
            return False
        failures = items.failures.setdefault(lease.work_id, [])
        failures.append(error)
        if len(failures) < max_deliveries:
            self._put_back(lease)
            return False
        self._bury(lease.stream, lease.entry_id, lease.work_id, lease.body)
        return True

    async def bury(self, stream: str, work_id: str, body: bytes, error: str) -> bool:
        """See `RedisQueue.bury`."""
        if any((d.stream, d.work_id) == (stream, work_id) for d in self._dead.values()):
            return False
        self._add_dead(stream, work_id, body, [error])
        return True

    async def release(self, lease: Lease) -> None:
        """See `RedisQueue.release`."""
        if self._streams[lease.stream].holds(lease):
            self._put_back(lease)

    async def length(self, streams: str | Sequence[str]) -> int:
        """See `RedisQueue.length`."""
        return sum(len(self._streams[name].entries) for name in stream_names(streams))

    async def purge(self, stream: str, incarnation: int) -> list[str]:
        """See `RedisQueue.purge`."""
        items = self._streams[stream]
        earlier = [
            (entry_id, entry.work_id)
            for entry_id, entry in items.entries.items()
            if int((re.findall(r"#(\d+)\.\d+$", entry.work_id) or [-1])[0]) < incarnation
        ]
        for _, work_id in earlier:
            items.failures.pop(work_id, None)
        return [work_id for entry_id, work_id in earlier if items.finish(entry_id, work_id)]

    async def dead_letters(self) -> list[DeadLetter]:
        """See `RedisQueue.dead_letters`."""
        return list(self._dead.values())

    async def dead_notices(self, after: str = "-") -> list[DeadNotice]:
        """See `RedisQueue.dead_notices`."""
        last = 0 if after == "-" else _number(after)
        return [letter for name, letter in self._dead.items() if _number(name) > last]

    async def num_dead(self) -> int:
        """See `RedisQueue.num_dead`."""
        return len(self._dead)

    async def drop(self, entry_id: str) -> bool:
        """See `RedisQueue.drop`."""
        return self._dead.pop(entry_id, None) is not None

    def _add(self, stream: str, work_id: str, body: bytes) -> None:
        entry_id = f"{next(self._ids)}-0"
        self._streams[stream].entries[entry_id] = _Entry(work_id, body)
        self._streams[stream].seen[work_id] = entry_id

    def _put_back(self, lease: Lease) -> None:
        del self._streams[lease.stream].entries[lease.entry_id]
        self._add(lease.stream, lease.work_id, lease.body)

    def _claim_expired(self, stream: str, consumer: str, lease_s: float) -> Lease | None:
        now = time.monotonic()
        for entry_id, entry in list(self._streams[stream].entries.items()):
            if entry.holder is None or now - entry.leased_at < lease_s:
                continue
            if entry.delivery < self._max_expiries:
                return self._hand_out(stream, entry_id, consumer)
            text = f"lease expired {entry.delivery} times: its workers died or hung"
            self._streams[stream].failures.setdefault(entry.work_id, []).append(text)
            self._bury(stream, entry_id, entry.work_id, entry.body)
        return None

    def _claim_new(self, stream: str, consumer: str) -> Lease | None:
        for entry_id, entry in self._streams[stream].entries.items():
            if entry.holder is None:
                return self._hand_out(stream, entry_id, consumer)
        return None

    def _hand_out(self, stream: str, entry_id: str, consumer: str) -> Lease:
        items = self._streams[stream]
        entry = items.entries[entry_id]
        entry.holder, entry.leased_at = consumer, time.monotonic()
        entry.delivery += 1
        return Lease(
            stream=stream,
            entry_id=entry_id,
            work_id=entry.work_id,
            body=entry.body,
            failures=list(items.failures.get(entry.work_id, [])),
            delivery=entry.delivery,
        )

    def _bury(self, stream: str, entry_id: str, work_id: str, body: bytes) -> None:
        items = self._streams[stream]
        failures = items.failures.pop(work_id, [])
        if items.finish(entry_id, work_id):
            self._add_dead(stream, work_id, body, failures)

    def _add_dead(self, stream: str, work_id: str, body: bytes, failures: list[str]) -> None:
        dead_id = f"{next(self._ids)}-0"
        self._dead[dead_id] = DeadLetter(
            entry_id=dead_id, stream=stream, work_id=work_id, body=body, failures=failures
        )


def _number(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])
