"""Connections to Redis, and its failures as this project's errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis.exceptions
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel as BlockingSentinel

from services.errors import SettingsError, UnavailableError
from services.host.environment import start_command
from services.redis.sentinel import SCHEME, SentinelUrl
from services.settings import RedisSettings

SOCKET_TIMEOUT_S = 5.0
"""Longest silence of Redis. Blocking reads stay well below it."""
_CONNECT_TIMEOUT_S = 2.0

_MEANING = {
    "BUSY": "runs somebody's script",
    "CLUSTERDOWN": "is a cluster that is down",
    "LOADING": "is loading its data",
    "MASTERDOWN": "is a replica that has lost its primary",
    "MISCONF": "cannot write: is its disk full or gone?",
    "NOREPLICAS": "has fewer replicas than its min-replicas-to-write",
    "OOM": "is out of memory: raise its maxmemory",
    "READONLY": "is a read-only replica: a fail-over, or the wrong address?",
    "UNBLOCKED": "has become a replica: a fail-over?",
    "WRONGTYPE": "has a key of a type that is not this program's; it will be set aside",
}
"""First word of an error that another time may not give, and what it says of Redis."""
_OF_CLUSTERS = {"MOVED", "ASK", "CROSSSLOT"}
_OF_GROUPS = {"NOGROUP", "BUSYGROUP"}
"""What the queue itself makes good."""


def connect(where: RedisSettings | str) -> Redis:
    """A client of a run's Redis; it connects on first use.

    A command is sent once: a client that resends after a lost answer adds an item twice, so callers
    repeat whole operations instead, which are guarded. Answers are bytes.

    Args:
        where: The settings, or an url where there is no password file:
            `redis://[user:password@]host:port/db`, or that of `services.redis.sentinel`, with which
            the client follows a fail-over.

    Raises:
        SettingsError: The url is not one of Redis, or the password file cannot be used.
    """
    where = _settings(where)
    options = {
        "retry": AsyncRetry(NoBackoff(), 0),
        "socket_timeout": SOCKET_TIMEOUT_S,
        "health_check_interval": 15,
        "protocol": 2,
    }
    try:
        client: Redis = _client(Redis, Sentinel, where, options)
    except ValueError as error:
        url = without_password(where.url)
        raise SettingsError(f"redis.url {url} is not usable: {error}") from error
    return client


def redis_answers(where: RedisSettings | str) -> bool:
    """Whether Redis accepts commands now: started, and done loading its data."""
    options = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 2.0}
    client = _client(BlockingRedis, BlockingSentinel, _settings(where), options)
    try:
        return bool(client.ping())
    except redis.exceptions.RedisError:
        return False
    finally:
        client.close()


def _client(kind: Any, sentinel: Any, where: RedisSettings, options: dict[str, Any]) -> Any:
    options |= {"password": where.password, "socket_connect_timeout": _CONNECT_TIMEOUT_S}
    group = SentinelUrl.of(where.url)
    if group is None:
        return kind.from_url(where.url, **options)
    unasked = {name: value for name, value in options.items() if name != "password"}
    asked = sentinel(group.sentinels, sentinel_kwargs=unasked)
    return asked.master_for(group.service, **(options | group.login), db=group.db)


def _settings(where: RedisSettings | str) -> RedisSettings:
    return RedisSettings(url=where) if isinstance(where, str) else where


def without_password(url: str) -> str:
    """The url without user and password, for logs."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="").geturl()


def client_url(client: Redis) -> str:
    """Where a client connects to, without its password."""
    pool = client.connection_pool
    options = pool.connection_kwargs
    if isinstance(pool, SentinelConnectionPool):
        asked = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
        hosts = ",".join(f"{each['host']}:{each['port']}" for each in asked)
        return f"{SCHEME}://{hosts}/{pool.service_name}/{options.get('db') or 0}"
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return str(options.get("path") or f"redis://{host}:{port}/{options.get('db') or 0}")


@contextmanager
def redis_errors(client: Redis) -> Iterator[None]:
    """Turn Redis's failures into this project's.

    Raises:
        UnavailableError: It may be back: it is away, in a fail-over, loading, busy, out of memory,
            or cannot write; or a key is of another type, which `Registry.set_aside` mends.
        SettingsError: It refuses this client, or is a cluster: asking again cannot help.
        ResponseError: A consumer group is not there, or is there already.
    """
    try:
        yield
    except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise SettingsError(_refusal(client, str(error))) from error
    except (redis.exceptions.ResponseError, redis.exceptions.BusyLoadingError) as error:
        code, text = _code(error)
        if code in _OF_GROUPS:
            raise
        place = f"Redis at {client_url(client)}"
        if code in _OF_CLUSTERS:
            raise SettingsError(f"{place} is a cluster, which is not supported") from error
        meaning = _MEANING.get(code, "answers with an error")
        raise UnavailableError(f"{place} {meaning} ({text})") from error
    except (redis.exceptions.RedisError, OSError) as error:
        place, reason = f"Redis at {client_url(client)}", str(error).rstrip(".")
        raise UnavailableError(
            f"{place} does not answer ({reason}); is it running? Start it with "
            f"`{start_command('sgg-rl serve redis')}`"
        ) from error


def _code(error: Exception) -> tuple[str, str]:
    """First word of Redis's answer, and the whole; the library takes the word off some of them."""
    text = str(error).rpartition("of pipeline caused error: ")[2].strip("(,)'\"")
    if code := getattr(error, "status_code", None):
        return str(code), f"{code} {text}"
    return text.partition(" ")[0], text


def _refusal(client: Redis, error: str) -> str:
    place = f"Redis at {client_url(client)}"
    if error.startswith("NOPERM") or "no permissions" in error:
        return f"{place} does not let this user work ({error}): give it the rights, or use another"
    if client.connection_pool.connection_kwargs.get("password") is None:
        return f"{place} asks for a password: put it into a file and name it in redis.password_file"
    if "without any password configured" in error:
        return f"{place} was started without a password: start it with this redis.password_file too"
    return f"{place} refuses the password: redis.password_file is not the one it was started with"
