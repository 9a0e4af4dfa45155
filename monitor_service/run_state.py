"""What Redis says of a run, read in one go."""

from collections import Counter
from dataclasses import dataclass

from redis.asyncio import Redis

from monitor_service.dead import DeadKind, DeadLetters
from services.redis.backlog import Backlog, read_backlog
from services.redis.client import redis_errors
from services.redis.keys import PROMPT_LANES, RunKeys
from services.redis.registry import Registry
from services.schemas.weights import PolicyRecord, ServerRecord

_STREAMS = {"prompts": PROMPT_LANES, "rollouts": ("rollouts",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """A run at one moment."""

    redis_persistent: bool
    """Whether every write goes to a file (AOF), and the last one did."""
    redis_memory_bytes: int
    redis_limit_bytes: int
    """0: none is set."""
    backlogs: dict[str, Backlog]
    """By `prompts` (all lanes) and `rollouts`."""
    dead: Counter[DeadKind]
    servers: list[ServerRecord]
    """Live ones, with those that still load their model."""
    policy: PolicyRecord | None
    """None before the first."""
    incarnation: int
    committed_step: int


class RunReader:
    """Reads the state again and again, without fetching bodies twice."""

    def __init__(self, client: Redis, keys: RunKeys) -> None:
        self._redis = client
        self._keys = keys
        self._registry = Registry(client, keys)
        self._dead = DeadLetters(client, keys)

    async def servers(self) -> list[ServerRecord]:
        """Live rollout servers.

        Raises:
            UnavailableError: Redis is away.
        """
        return await self._registry.servers(starting=True)

    async def read(self) -> RunState:
        """The state of now.

        Raises:
            UnavailableError: Redis is away.
        """
        published = await self._registry.policy()
        with redis_errors(self._redis):
            told = await self._redis.info("persistence", "memory")
        return RunState(
            redis_persistent=told["aof_enabled"] == 1 and told["aof_last_write_status"] == "ok",
            redis_memory_bytes=told["used_memory"],
            redis_limit_bytes=told["maxmemory"],
            backlogs={
                name: await read_backlog(self._redis, self._keys, streams)
                for name, streams in _STREAMS.items()
            },
            dead=await self._dead.count(),
            servers=await self.servers(),
            policy=published[0] if published else None,
            incarnation=await self._registry.incarnation(),
            committed_step=await self._registry.committed_step(),
        )
