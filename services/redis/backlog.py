"""How much waits on the streams, and for how long."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from services.redis.client import redis_errors
from services.redis.keys import CONSUMER_GROUPS, RunKeys

# KEYS streams; ARGV their consumer groups. {now in ms, then of each stream: items, leased items, id
# of the oldest or ""}. Bodies stay in Redis; a stream that nobody claimed from has no group yet.
_BACKLOG = """
local now = redis.call('TIME')
local found = {now[1] * 1000 + math.floor(now[2] / 1000)}
for i, stream in ipairs(KEYS) do
  local pending = redis.pcall('XPENDING', stream, ARGV[i])
  local oldest = redis.call('TYPE', stream).ok == 'stream'
                 and redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  found[#found + 1] = oldest and redis.call('XLEN', stream) or 0
  found[#found + 1] = pending.err and 0 or pending[1]
  found[#found + 1] = oldest and oldest[1] or ''
end
return found
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """What is on one or more streams.

    Example: `Backlog(waiting=3, leased=8, oldest_s=2.5)`
    """

    waiting: int
    """Items that nobody has claimed."""
    leased: int
    """Items that somebody works on, or whose lease has expired."""
    oldest_s: float
    """Age of the oldest item in seconds; 0 where there is none. One that failed or was handed back
    is as old as its new entry."""


async def read_backlog(client: Redis, keys: RunKeys, streams: Sequence[str]) -> Backlog:
    """What is on these streams together, read in one move.

    Raises:
        UnavailableError: Redis is away.
    """
    with redis_errors(client):
        now_ms, *found = await client.register_script(_BACKLOG)(
            keys=[keys.stream(name) for name in streams],
            args=[CONSUMER_GROUPS[name] for name in streams],
        )
    lengths, leased, oldest = found[0::3], found[1::3], found[2::3]
    ages = [(now_ms - _milliseconds(entry)) / 1000 for entry in oldest if entry]
    return Backlog(
        waiting=sum(lengths) - sum(leased), leased=sum(leased), oldest_s=max(ages, default=0.0)
    )


def _milliseconds(entry_id: Any) -> int:
    """An entry's id begins with the time that it came, by Redis's clock."""
    return int(bytes(entry_id).partition(b"-")[0])
