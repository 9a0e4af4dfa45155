"""Connections to Redis, and its failures as this project's errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis.exceptions
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.errors import SettingsError, UnavailableError

SOCKET_TIMEOUT_S = 5.0
"""Longest silence of Redis. Blocking reads stay well below it."""


def connect(url: str) -> Redis:
    """A client for `redis://[user:password@]host:port/db`; it connects on first use.

    A command is sent once: a client that resends after a lost answer adds an item twice, so callers
    repeat whole operations instead, which are guarded. Answers are bytes.

    Raises:
        SettingsError: The url is not one of Redis.
    """
    try:
        client: Redis = Redis.from_url(
            url,
            retry=AsyncRetry(NoBackoff(), 0),
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=2.0,
            health_check_interval=15,
            protocol=2,
        )
    except ValueError as error:
        raise SettingsError(f"redis.url {without_password(url)} is not usable: {error}") from error
    return client


def redis_answers(url: str) -> bool:
    """Whether Redis accepts commands now: started, and done loading its data."""
    client = BlockingRedis.from_url(
        url, retry=Retry(NoBackoff(), 0), socket_timeout=2.0, socket_connect_timeout=2.0
    )
    try:
        return bool(client.ping())
    except redis.exceptions.RedisError:
        return False
    finally:
        client.close()


def without_password(url: str) -> str:
    """The url as it may stand in a log."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="").geturl()


def client_url(client: Redis) -> str:
    """Where a client connects to, without its password."""
    options = client.connection_pool.connection_kwargs
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return str(options.get("path") or f"redis://{host}:{port}/{options.get('db') or 0}")


@contextmanager
def redis_errors(client: Redis) -> Iterator[None]:
    """Turn what Redis may recover from into `UnavailableError`; other errors pass as they are."""
    try:
        yield
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as error:
        raise UnavailableError(
            f"Redis at {client_url(client)} does not answer ({error}); is it running? "
            "Start it with `sgg-rl serve redis`."
        ) from error
    except redis.exceptions.OutOfMemoryError as error:
        raise UnavailableError(
            f"Redis at {client_url(client)} is out of memory: raise its maxmemory"
        ) from error
    except redis.exceptions.ResponseError as error:
        if not str(error).startswith("MISCONF"):  # MISCONF: its disk is full or gone
            raise
        raise UnavailableError(f"Redis at {client_url(client)} cannot write: {error}") from error
