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
from services.settings import RedisSettings

SOCKET_TIMEOUT_S = 5.0
"""Longest silence of Redis. Blocking reads stay well below it."""


def connect(where: RedisSettings | str) -> Redis:
    """A client of a run's Redis; it connects on first use.

    A command is sent once: a client that resends after a lost answer adds an item twice, so callers
    repeat whole operations instead, which are guarded. Answers are bytes.

    Args:
        where: The settings, or an url, `redis://[user:password@]host:port/db`, where there is no
            password file.

    Raises:
        SettingsError: The url is not one of Redis, or the password file cannot be used.
    """
    where = _settings(where)
    try:
        client: Redis = Redis.from_url(
            where.url,
            password=where.password,
            retry=AsyncRetry(NoBackoff(), 0),
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=2.0,
            health_check_interval=15,
            protocol=2,
        )
    except ValueError as error:
        url = without_password(where.url)
        raise SettingsError(f"redis.url {url} is not usable: {error}") from error
    return client


def redis_answers(where: RedisSettings | str) -> bool:
    """Whether Redis accepts commands now: started, and done loading its data."""
    where = _settings(where)
    client = BlockingRedis.from_url(
        where.url,
        password=where.password,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=2.0,
        socket_connect_timeout=2.0,
    )
    try:
        return bool(client.ping())
    except redis.exceptions.RedisError:
        return False
    finally:
        client.close()


def _settings(where: RedisSettings | str) -> RedisSettings:
    return RedisSettings(url=where) if isinstance(where, str) else where


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
    """Turn Redis's failures into this project's.

    Raises:
        UnavailableError: It may be back: it is away, out of memory, or cannot write.
        SettingsError: It refuses this client: asking again cannot help.
    """
    try:
        yield
    except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise SettingsError(_refusal(client, str(error))) from error
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


def _refusal(client: Redis, error: str) -> str:
    place = f"Redis at {client_url(client)}"
    if error.startswith("NOPERM") or "no permissions" in error:
        return f"{place} does not let this user work ({error}): give it the rights, or use another"
    if client.connection_pool.connection_kwargs.get("password") is None:
        return f"{place} asks for a password: put it into a file and name it in redis.password_file"
    if "without any password configured" in error:
        return f"{place} was started without a password: start it with this redis.password_file too"
    return f"{place} refuses the password: redis.password_file is not the one it was started with"
