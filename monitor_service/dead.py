"""Why groups have died, in few words: dead letters by stream and kind of failure."""

import re
from collections import Counter
from typing import Any, Literal, NamedTuple

from redis.asyncio import Redis

from services.keys import RunKeys
from services.queues.redis import failure_texts
from services.redis_client import redis_errors

_PAGE = 100
"""Letters of one read: their bodies come too, and may be large."""
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
        self._kinds: list[DeadKind] = []
        self._last_id = "-"

    async def count(self) -> Counter[DeadKind]:
        """The dead of now.

        Raises:
            UnavailableError: Redis is away.
        """
        with redis_errors(self._redis):
            await self._read_new()
            if len(self._kinds) != await self._redis.xlen(self._key):  # some were taken out
                self._kinds, self._last_id = [], "-"
                await self._read_new()
        return Counter(self._kinds)

    async def _read_new(self) -> None:
        while True:
            page: Any = await self._redis.xrange(self._key, min=self._last_id, count=_PAGE)
            for entry_id, fields in page:
                self._kinds.append(
                    dead_kind(fields.get(b"stream", b""), fields.get(b"failures", b""))
                )
                self._last_id = f"({entry_id.decode()}"  # exclusive
            if len(page) < _PAGE:
                return


def dead_kind(stream: bytes, failures: bytes) -> DeadKind:
    """The kind of a letter, by its last failure.

    Args:
        stream: Its field, such as `prompts/9`.
        failures: Its field: a JSON list of texts, from `rollout_service.worker`,
            `services.queues.lua` and the trainer's collector.
    """
    texts = failure_texts(failures)
    last = texts[-1] if texts else ""
    matching = (reason for pattern, reason in _KINDS if re.match(pattern, last))
    return DeadKind(
        "prompts" if stream.startswith(b"prompts") else "rollouts", next(matching, "refused")
    )
