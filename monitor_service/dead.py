"""Why groups have died, in few words: dead letters by stream and kind of failure."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from redis.asyncio import Redis

from services.redis.client import redis_errors
from services.redis.keys import RunKeys
from services.redis.queue import RedisQueue

DeadStream = Literal["prompts", "rollouts"]
Reason = Literal["lease_expired", "data", "server", "refused"]

_KINDS: tuple[tuple[str, Reason], ...] = (
    (r"lease expired ", "lease_expired"),
    (r"data: ", "data"),
    (r"\w+ on \S+: ", "server"),
)


class DeadKind(NamedTuple):
    """Where a group died, and why.

    Example: `DeadKind(stream="prompts", reason="server")`
    """

    stream: DeadStream
    """`prompts`: while it was sampled; `rollouts`: after that."""
    reason: Reason
    """`data`: the prompt or its image cannot be used. `server`: rollout servers failed at it.
    `lease_expired`: its servers died or hung. `refused`: the trainer or the reward service could
    not use what was sampled."""


class DeadLetters:
    """Counts the dead; each letter is read once, while none is dropped."""

    def __init__(self, client: Redis, keys: RunKeys) -> None:
        self._redis = client
        self._key = keys.dead
        self._queue = RedisQueue(client, keys)
        self._kinds: dict[str, DeadKind] = {}
        """By entry id, oldest first."""

    async def count(self) -> Counter[DeadKind]:
        """The dead of now.

        Raises:
            UnavailableError: Redis is away.
        """
        await self._read_new()
        await self._forget_trimmed()
        if len(self._kinds) != await self._queue.num_dead():  # some were taken out
            self._kinds = {}
            await self._read_new()
        return Counter(self._kinds.values())

    async def _read_new(self) -> None:
        while notices := await self._queue.dead_notices(next(reversed(self._kinds), "-")):
            self._kinds |= {n.entry_id: dead_kind(n.stream, n.failures) for n in notices}

    async def _forget_trimmed(self) -> None:
        """The oldest go when there are more than are kept."""
        with redis_errors(self._redis):
            oldest: Any = await self._redis.xrange(self._key, count=1)
        if oldest and (first := oldest[0][0].decode()) in self._kinds:
            while next(iter(self._kinds)) != first:
                del self._kinds[next(iter(self._kinds))]


def dead_kind(stream: str, failures: Sequence[str]) -> DeadKind:
    """The kind of a dead item, by its last failure.

    Args:
        stream: Where it died, such as `prompts/9`.
        failures: From the queue worker, `services.redis.lua` and the trainer's collector.
    """
    last = failures[-1] if failures else ""
    matching = (reason for pattern, reason in _KINDS if re.match(pattern, last))
    return DeadKind(
        "prompts" if stream.startswith("prompts") else "rollouts", next(matching, "refused")
    )
