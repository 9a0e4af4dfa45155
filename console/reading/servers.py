"""A run's servers, queues and dead groups, as its Redis knows them now."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from console.reading.run import BAD
from monitor_service.run_state import RunReader, RunState
from services.errors import SggError
from services.redis.client import connect, without_password
from services.redis.keys import RunKeys
from services.redis.queue import DeadNotice, RedisQueue
from services.run_folder import RunFolder
from services.run_folder.events import read_events
from services.settings import RedisSettings

_OF_SERVERS = ("server_joined", "server_died", "quarantined", "recovered")
_EVENTS = 30
_LETTERS = 100
"""Dead groups that are shown: the last ones."""


@dataclass(frozen=True, slots=True)
class RedisView:
    """What Redis says of a run, or why nothing can be said."""

    url: str
    problem: str | None = None
    state: RunState | None = None
    letters: Sequence[DeadNotice] = field(default_factory=tuple)
    """The last dead groups, the newest first."""


def server_events(files: RunFolder) -> list[dict[str, Any]]:
    """The last times that a server came, went or was quarantined, the first of them first.

    The trainer wrote them down, so that they are known when Redis is gone.
    """
    try:
        events = read_events(files.path)
    except OSError:  # the run's page says what is wrong with the file
        return []
    found = [event for event in events if event.kind in _OF_SERVERS][-_EVENTS:]
    return [event.model_dump() | {"bad": event.kind in BAD} for event in found]


class RedisReader:
    """Reads one run's Redis again and again; close it with `aclose`.

    Args:
        where: The run's Redis.
        run: The run's name.
    """

    def __init__(self, where: RedisSettings, run: str) -> None:
        self._url = without_password(where.url)
        self._redis: Redis = connect(where)
        keys = RunKeys(run)
        self._state = RunReader(self._redis, keys)
        self._queue = RedisQueue(self._redis, keys)
        self._letters: deque[DeadNotice] = deque(maxlen=_LETTERS)
        self._num_dead = 0

    async def read(self) -> RedisView:
        """What it says now."""
        try:
            state = await self._state.read()
            await self._read_letters()
        except SggError as error:
            return RedisView(self._url, error.message)
        except Exception as error:  # noqa: BLE001 - another release's records: the page goes on
            return RedisView(self._url, f"what it holds is not understood: {error}")
        return RedisView(self._url, None, state, tuple(reversed(self._letters)))

    async def _read_letters(self) -> None:
        """Only where their number has changed: there may be thousands."""
        if (num_dead := await self._queue.num_dead()) == self._num_dead:
            return
        self._letters.clear()
        while notices := await self._queue.dead_notices(
            self._letters[-1].entry_id if self._letters else "-"
        ):
            self._letters.extend(notices)
        self._num_dead = num_dead

    async def aclose(self) -> None:
        """End its connection."""
        await self._redis.aclose()
