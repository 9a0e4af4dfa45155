"""Whether a Redis can hold a run's work: new enough, losing nothing, dropping nothing."""

import logging
from dataclasses import dataclass

from redis.asyncio import Redis

from services.errors import SettingsError
from services.redis.client import client_url, redis_errors

logger = logging.getLogger(__name__)

OLDEST = (7, 0)
"""Before it, `XAUTOCLAIM` hands out entries that were deleted. Valkey began with 7.2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisFacts:
    """What a server says of itself."""

    url: str
    version: str
    """Redis's version, or the one that its fork is compatible with."""
    is_persistent: bool
    """It writes each command to disk (AOF)."""
    eviction: str
    """What it does when its memory is full."""

    @property
    def problem(self) -> str | None:
        """Why the server cannot be used; None where it can."""
        if tuple(int(part) for part in self.version.split(".")[:2]) >= OLDEST:
            return None
        return (
            f"Redis at {self.url} is version {self.version}: 7.0 or later is needed, or any "
            "Valkey; `sgg-rl serve redis` starts one"
        )

    @property
    def warnings(self) -> list[str]:
        """What about the server may cost work."""
        lines = []
        if not self.is_persistent:
            lines.append(
                f"Redis at {self.url} keeps nothing on disk: when it ends, groups under way are "
                "sampled again; start it with `appendonly yes`"
            )
        if self.eviction != "noeviction":
            lines.append(
                f"Redis at {self.url} drops work when its memory is full ({self.eviction}): start "
                "it with `maxmemory-policy noeviction`"
            )
        return lines


async def redis_facts(client: Redis) -> RedisFacts:
    """Ask a server.

    Raises:
        UnavailableError: It does not answer.
        SettingsError: It refuses this client.
    """
    with redis_errors(client):
        info = await client.info()
    return RedisFacts(
        url=client_url(client),
        version=str(info["redis_version"]),
        is_persistent=bool(info.get("aof_enabled")),
        eviction=str(info.get("maxmemory_policy", "unknown")),
    )


async def check_redis(client: Redis) -> None:
    """Log what may cost work.

    Raises:
        UnavailableError: It does not answer.
        SettingsError: It refuses this client, or is too old.
    """
    facts = await redis_facts(client)
    if facts.problem is not None:
        raise SettingsError(facts.problem)
    for warning in facts.warnings:
        logger.warning("%s", warning)
