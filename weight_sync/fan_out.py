"""Who gives a version to whom, so that the trainer does not send it to every server.

    trainer ── A ─┬─ B ─┬─ …    the trainer sends it once; a server that has verified it
                  └─ C ─┴─ …    gives it to two others, one after the other

Rounds grow with the logarithm of the servers: 9 for 64, and 1 more for each 1.6 times as many
(the trainer alone would take 64). The trainer only stands in for a server that fails.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Server = TypeVar("Server")

MOST_GIVEN = 2
"""Servers that one server gives a version to."""
_MOST_FAILURES = 1
"""More failures than successes than this, and servers do not reach each other: a network without
a way between them must not make each wait for its own failure."""


def num_rounds(num_servers: int) -> int:
    """Sends, one after the other, until so many servers have a version."""
    before, new, have, rounds = 0, 1, 1, 1
    while have < num_servers:  # those that got it in the last two rounds give it in the next
        before, new, rounds = new, before + new, rounds + 1
        have += new
    return rounds


class FanOut(Generic[Server]):
    """Gives one version to servers, in the order in which they are named, as it gets about.

    Args:
        give: Gives it to the second server: from the first one, or from the trainer where that is
            None. Returns whether the second has it, verified.
    """

    def __init__(self, give: Callable[[Server | None, Server], Awaitable[bool]]) -> None:
        self._give = give
        self._givers: deque[Server] = deque()
        """They have it, and can give it now."""
        self._given: Counter[Server] = Counter()
        self._num_under_way = 0
        self._num_failed = 0
        """Times that the trainer stood in, less those that a server gave it."""
        self._changed = asyncio.Condition()

    async def reach(self, server: Server) -> bool:
        """Give it to a server when there is one to give it; returns whether it has it."""
        if server in self._givers:  # it is quarantined, or has started anew
            self._givers.remove(server)
        giver = await self._begin()
        has_it, passed = False, False
        try:
            passed = giver is not None and await self._give(giver, server)
            has_it = passed or await self._give(None, server)
        finally:
            if giver is not None and has_it:
                self._given[giver] += 1
                self._num_failed += -1 if passed else 1
            # One that failed where the trainer did not gives no more.
            await self._end([giver] * (passed or not has_it) + [server] * has_it)
        return has_it

    async def _begin(self) -> Server | None:
        """Wait for a giver: None for the trainer, where nobody has the version or will soon."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._givers or not self._num_under_way or self._is_hopeless
            )
            self._num_under_way += 1
            return self._givers.popleft() if self._givers and not self._is_hopeless else None

    async def _end(self, givers: list[Server | None]) -> None:
        async with self._changed:
            self._num_under_way -= 1
            free = (g for g in givers if g is not None and self._given[g] < MOST_GIVEN)
            self._givers.extend(free)
            self._changed.notify_all()

    @property
    def _is_hopeless(self) -> bool:
        return self._num_failed > _MOST_FAILURES
