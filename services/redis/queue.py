"""The work queue on Redis Streams. `services.redis.lua` holds the moves, this file their calls.

Delivery is at least once; the outcome is exactly one. An item is enqueued once (`work_id`), and
ends once: completed onto the next stream, acknowledged, or dead. The first to finish it wins, even
without the lease. A reader waits in Redis for an item; a writer never waits: `rollouts` is bounded
by the prompts that the trainer has asked for.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import redis.exceptions
from pydantic_core import from_json
from redis.asyncio import Redis

from services.errors import NotFoundError
from services.redis import lua
from services.redis.client import redis_errors
from services.redis.keys import CONSUMER_GROUPS, RunKeys

logger = logging.getLogger(__name__)

GUARD_TTL_S = 600
"""What an item that has ended leaves behind lives this long, so that memory stays bounded."""
MAX_ERROR_CHARACTERS = 4000
"""The end of an error is kept, where a traceback says what happened."""
_FEW_LETTERS = 20
"""A read brings so many letters, with their bodies."""
_LONGEST_BLOCK_S = 1.0
"""A read waits so long, well below the socket's timeout; then expired leases are looked for."""


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


class RedisQueue:
    """The streams of one run: the lanes of prompts, and `rollouts`.

    Every method raises `UnavailableError` while Redis is away; calling it again is always safe.
    """

    def __init__(self, client: Redis, keys: RunKeys, *, max_expiries: int = 15) -> None:
        """Args are kept; nothing is sent yet.

        Args:
            client: From `services.redis.client.connect`.
            keys: The run's keys.
            max_expiries: Times an item's lease may expire with no failure recorded before it is
                dead: a worker that dies says nothing, and an item that kills every worker must not
                go round for ever.
        """
        self._redis = client
        self._keys = keys
        self._max_expiries = max_expiries
        self._scripts: dict[str, Any] = {}

    async def enqueue(self, stream: str, work_id: str, body: bytes) -> bool:
        """Add an item unless one with this `work_id` was ever added to this stream.

        Returns:
            Whether it was added. Calling again after an unclear failure is safe.
        """
        if stream not in CONSUMER_GROUPS:  # nobody would ever read it
            raise NotFoundError(f"no stream {stream!r}; there are {', '.join(CONSUMER_GROUPS)}")
        return bool(await self._call(lua.ENQUEUE, stream, work_id, body))

    async def claim(
        self, streams: str | Sequence[str], consumer: str, *, lease_s: float, block_s: float
    ) -> Lease | None:
        """Take one item, an expired lease first; wait up to `block_s` seconds for one.

        An item whose lease expired too often is buried on the way.

        Args:
            streams: One, or several of one consumer group: an item of an earlier one comes first.
                Within a stream, items come in order.
            consumer: The lease's holder.
            lease_s: Others' leases that were not renewed for that long have expired.
            block_s: 0 does not wait.
        """
        names = stream_names(streams)
        deadline = time.monotonic() + block_s
        while True:
            try:
                lease = await self._claim_now(names, consumer, lease_s)
                left_s = deadline - time.monotonic()
                if lease is None and left_s > 0:
                    lease = await self._wait_for_new(names, consumer, left_s)
            except redis.exceptions.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                await self._create_groups(names)
                continue
            if lease or time.monotonic() >= deadline:
                return lease

    async def renew(self, lease: Lease, consumer: str) -> bool:
        """Restart the lease's clock. False when another consumer holds it or the item has ended."""
        place = (*_stream(lease.stream), lease.entry_id, lease.delivery)
        return bool(await self._call(lua.RENEW, *place, consumer))

    async def complete(
        self, lease: Lease, *, result_stream: str | None = None, result: bytes = b""
    ) -> bool:
        """End an item; put `result` on `result_stream` under the same `work_id`, in one move.

        Returns:
            Whether this call ended it; False when it had already ended.
        """
        place = (*_stream(lease.stream), lease.entry_id, lease.work_id)
        return bool(await self._call(lua.COMPLETE, *place, result_stream or "", result))

    async def fail(self, lease: Lease, error: str, *, max_deliveries: int) -> bool:
        """Record a failed attempt; the item is claimable at once, or dead after enough of them.

        Without effect when the lease has passed to another.

        Returns:
            Whether the item is now dead.
        """
        text = error[-MAX_ERROR_CHARACTERS:]
        return bool(await self._call(lua.FAIL, *_held(lease), text, max_deliveries))

    async def bury(self, stream: str, work_id: str, body: bytes, error: str) -> bool:
        """Put an item that had ended among the dead: what it brought turned out to be of no use.

        Returns:
            Whether this call did; False when it is among them already.
        """
        text = error[-MAX_ERROR_CHARACTERS:]
        return bool(await self._call(lua.BURY, stream, work_id, body, text))

    async def release(self, lease: Lease) -> None:
        """Hand a lease back unused (draining): claimable at once, no failure recorded.

        Without effect when the lease has passed to another.
        """
        await self._call(lua.RELEASE, *_held(lease))

    async def length(self, streams: str | Sequence[str]) -> int:
        """Items on the streams that have not ended, claimed ones included."""
        with redis_errors(self._redis):
            async with self._redis.pipeline(transaction=True) as pipe:
                for name in stream_names(streams):
                    pipe.xlen(self._keys.stream(name))
                return sum(await pipe.execute())

    async def purge(self, stream: str, incarnation: int) -> list[str]:
        """End every item of earlier starts without result; their work ids. A new trainer calls it.

        Args:
            stream: One of the streams.
            incarnation: The caller's: what this start or a later one has asked for stays.
        """
        ended = await self._call(lua.PURGE, *_stream(stream), incarnation)
        return [work_id.decode() for work_id in ended]

    async def dead_letters(self) -> list[DeadLetter]:
        """The dead items that are kept, oldest first."""
        letters: list[DeadLetter] = []
        after = "-"
        while True:  # a few at a time: their bodies are large
            with redis_errors(self._redis):
                page: Any = await self._redis.xrange(self._keys.dead, min=after, count=_FEW_LETTERS)
            letters += [_dead_letter(entry_id, fields) for entry_id, fields in page]
            if len(page) < _FEW_LETTERS:
                return letters
            after = f"({letters[-1].entry_id}"

    async def dead_notices(self, after: str = "-") -> list[DeadNotice]:
        """The next dead items, oldest first, up to 100: cheap, however large they are.

        Args:
            after: Entry id of the last one that was read; "-" for none.
        """
        return [
            DeadNotice(
                entry_id=entry_id.decode(),
                stream=stream.decode(errors="replace"),
                work_id=work_id.decode(errors="replace"),
                failures=failure_texts(failures),
            )
            for entry_id, stream, work_id, failures in await self._call(lua.DEAD, after, 100)
        ]

    async def num_dead(self) -> int:
        """Number of dead items that are kept."""
        with redis_errors(self._redis):
            return int(await self._redis.xlen(self._keys.dead))

    async def drop(self, entry_id: str) -> bool:
        """Forget a dead item. False when there is no such item."""
        with redis_errors(self._redis):
            return bool(await self._redis.xdel(self._keys.dead, entry_id))

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _claim_now(self, streams: list[str], consumer: str, lease_s: float) -> Lease | None:
        lease_ms = max(1, round(lease_s * 1000))
        place = (CONSUMER_GROUPS[streams[0]], consumer, lease_ms, self._max_expiries)
        while found := await self._call(lua.CLAIM, *place, *streams):
            stream, entry_id, *item = found
            lease = await self._lease(stream.decode(), entry_id.decode(), *item[:2])
            if lease is not None:
                return replace(lease, delivery=item[2], failures=_texts(item[3]))
        return None

    async def _lease(
        self, stream: str, entry_id: str, raw_id: bytes = b"", body: bytes | None = None
    ) -> Lease | None:
        """A lease of an entry that was handed out for the first time.

        None where this queue cannot have written it: it is set aside, for it must not end those who
        read it.
        """
        with suppress(UnicodeDecodeError):
            if (work_id := raw_id.decode()) and body is not None:
                return Lease(stream=stream, entry_id=entry_id, work_id=work_id, body=body)
        reason = "the entry has no id and body, or an id that is no text: who has written it?"
        if await self._call(lua.SET_ASIDE, *_stream(stream), entry_id, reason):
            logger.warning(
                "entry %s of %r is set aside among the dead: %s", entry_id, stream, reason
            )
        return None

    async def _wait_for_new(
        self, streams: list[str], consumer: str, block_s: float
    ) -> Lease | None:
        """The next item of any stream. A read that finds several takes one of each stream."""
        with redis_errors(self._redis):
            reply: Any = await self._redis.xreadgroup(
                CONSUMER_GROUPS[streams[0]],
                consumer,
                {self._keys.stream(stream): ">" for stream in streams},
                count=1,
                block=max(1, round(min(block_s, _LONGEST_BLOCK_S) * 1000)),  # 0 waits for ever
            )
        leases = []
        for key, entries in reply or ():
            stream = key.decode().removeprefix(self._keys.prefix)
            for entry_id, fields in entries:
                item = fields.get(b"id", b""), fields.get(b"body")
                if lease := await self._lease(stream, entry_id.decode(), *item):
                    leases.append(lease)
        for extra in leases[1:]:
            await self.release(extra)
        if not leases:
            return None
        failures = await self._call(lua.FAILURES, leases[0].stream, leases[0].work_id)
        return replace(leases[0], failures=_texts(failures))

    async def _create_groups(self, streams: list[str]) -> None:
        """At id 0: items that came before the group are its work too."""
        for stream in streams:
            with redis_errors(self._redis):
                try:
                    await self._redis.xgroup_create(
                        self._keys.stream(stream), CONSUMER_GROUPS[stream], id="0", mkstream=True
                    )
                except redis.exceptions.ResponseError as error:
                    if not str(error).startswith("BUSYGROUP"):  # another consumer was first
                        raise

    async def _call(self, script: str, *args: str | bytes | float) -> Any:
        if (move := self._scripts.get(script)) is None:  # to register it hashes its text
            move = self._scripts[script] = self._redis.register_script(lua.PRELUDE + script)
        with redis_errors(self._redis):
            return await move(args=[self._keys.prefix, GUARD_TTL_S, *args])


def stream_names(streams: str | Sequence[str]) -> list[str]:
    """One name or several, as a list."""
    return [streams] if isinstance(streams, str) else list(streams)


def _stream(stream: str) -> tuple[str, str]:
    return stream, CONSUMER_GROUPS[stream]


def _held(lease: Lease) -> tuple[str | bytes | float, ...]:
    place = (*_stream(lease.stream), lease.entry_id, lease.delivery)
    return (*place, lease.work_id, lease.body)


def _texts(raw: Sequence[bytes]) -> list[str]:
    return [text.decode(errors="replace") for text in raw]


def _dead_letter(entry_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    """One that somebody else has put there too: what it lacks is empty."""
    texts = {name: fields.get(name, b"").decode(errors="replace") for name in (b"stream", b"id")}
    return DeadLetter(
        entry_id=entry_id.decode(),
        stream=texts[b"stream"],
        work_id=texts[b"id"],
        body=fields.get(b"body", b""),
        failures=failure_texts(fields.get(b"failures", b"")),
    )


def failure_texts(raw: bytes) -> list[str]:
    """The `failures` of a dead letter; Redis writes an empty list as `{}`."""
    try:
        found = from_json(raw or b"[]")
    except ValueError:
        return [raw.decode(errors="replace")[-MAX_ERROR_CHARACTERS:]]
    return [str(text) for text in found] if isinstance(found, list) else []
