"""What the shipped code talks to services with, over the simulated network."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import redis.exceptions

from services.errors import ClientGoneError, SggError, UnavailableError, WaitTimeoutError
from services.redis import lua
from services.redis.client import SOCKET_TIMEOUT_S
from services.schemas.rewards import RewardRequest, RewardResponse
from services.schemas.weights import CommitRequest, PassOnRequest, PolicyInfo, StageRequest, Version
from tests.simulation.loop import PROCESS
from tests.simulation.network import BrokenError, RefusedError, SilentError

if TYPE_CHECKING:
    from tests.simulation.redis_server import RedisServer
    from tests.simulation.world import World


class RedisClient:
    """`redis.asyncio.Redis`, as far as this project uses it."""

    connection_pool = SimpleNamespace(connection_kwargs={"host": "redis", "port": 6379})

    def __init__(self, world: "World") -> None:
        self._world = world

    @property
    def _server(self) -> "RedisServer":
        return self._world.redis

    async def __aenter__(self) -> "RedisClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def aclose(self) -> None:
        return None

    async def _ask(self, work: Callable[[], Any]) -> Any:
        try:
            return await self._world.network.ask("redis", work, SOCKET_TIMEOUT_S)
        except SilentError as error:
            raise redis.exceptions.TimeoutError("Timeout reading from redis:6379") from error
        except (RefusedError, BrokenError) as error:
            raise redis.exceptions.ConnectionError(str(error)) from error

    def command(self, *args: Any) -> Any:
        """Any command, to be awaited."""
        return self._ask(lambda: self._server.command(*args))

    def register_script(self, text: str) -> Callable[..., Any]:
        """See redis-py."""
        ask = self._ask
        if text.endswith(lua.COMPLETE):
            ask = self._move
        elif text.endswith(lua.PURGE):
            ask = self._purge

        def run(keys: Sequence[Any] = (), args: Sequence[Any] = ()) -> Any:
            return ask(lambda: self._server.script(text, keys, args))

        return run

    async def _move(self, work: Callable[[], Any]) -> Any:
        """A script that ends a group."""
        me = PROCESS.get()
        assert me is not None
        return await self._ask(lambda: self._world.after_move(me, work))

    async def _purge(self, work: Callable[[], Any]) -> Any:
        """A script that a trainer begins with."""
        self._world.before_purge()
        return await self._ask(work)

    def pipeline(self, *, transaction: bool = True) -> "Pipeline":
        """See redis-py."""
        assert transaction
        return Pipeline(self)

    async def transaction(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Several commands in one move."""
        found: list[Any] = await self._ask(lambda: [self._server.command(*c) for c in commands])
        return found

    async def info(self) -> dict[str, Any]:
        await self.command("TIME")
        return {"redis_version": "7.4.0", "aof_enabled": 1, "maxmemory_policy": "noeviction"}

    def xlen(self, key: str) -> Any:
        return self.command("XLEN", key)

    def xdel(self, key: str, *ids: Any) -> Any:
        return self.command("XDEL", key, *ids)

    async def xrange(self, key: str, min: str = "-", max: str = "+", count: int = 1 << 30) -> Any:
        found = await self.command("XRANGE", key, min, max, "COUNT", count)
        return [(entry, _fields(fields)) for entry, fields in found]

    def xgroup_create(self, key: str, group: str, id: str, mkstream: bool) -> Any:
        return self.command("XGROUP", "CREATE", key, group, id, *["MKSTREAM"] * mkstream)

    async def xreadgroup(
        self, group: str, consumer: str, streams: dict[str, str], count: int, block: int
    ) -> Any:
        args = ["XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", *streams]
        found = await self._ask(lambda: self._server.read([*args, *streams.values()], block / 1000))
        return [
            [key, [(entry, _fields(fields)) for entry, fields in entries]]
            for key, entries in found or ()
        ]

    def hgetall(self, key: str) -> Any:
        return self.command("HGETALL", key)

    def hget(self, key: str, name: str) -> Any:
        return self.command("HGET", key, name)

    def hdel(self, key: str, *names: Any) -> Any:
        return self.command("HDEL", key, *names)

    def mget(self, keys: Sequence[str]) -> Any:
        return self.command("MGET", *keys)

    def set(self, key: str, value: Any, **options: Any) -> Any:
        more = [each for pair in options.items() for each in pair]
        return self.command("SET", key, value, *more)

    def delete(self, *keys: Any) -> Any:
        return self.command("DEL", *keys)

    def unlink(self, *keys: Any) -> Any:
        return self.command("UNLINK", *keys)


class NearRedis(RedisClient):
    """The simulated Redis in a real event loop, without a network: for tests of itself."""

    def __init__(self) -> None:
        from tests.simulation.redis_server import RedisServer

        nowhere: Any = SimpleNamespace(listening={})
        self._near = RedisServer(asyncio.get_running_loop(), nowhere)

    @property
    def _server(self) -> "RedisServer":
        return self._near

    async def _ask(self, work: Callable[[], Any]) -> Any:
        found = work()
        return await found if isinstance(found, asyncio.Future) else found

    _move = _purge = _ask


class Pipeline:
    """Commands that are sent together."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._commands: list[tuple[Any, ...]] = []

    async def __aenter__(self) -> "Pipeline":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., None]:
        def queue(*args: Any, **options: Any) -> None:
            more = [each for pair in options.items() for each in pair]
            command = {"delete": "DEL"}.get(name, name.upper())
            self._commands.append((command, *args, *more))

        return queue

    async def execute(self) -> list[Any]:
        return await self._client.transaction(self._commands)


def _fields(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


class Body:
    """An upload's bytes; of a torn one the first half comes."""

    silent_s = 0.0

    def __init__(self, content: bytes, is_torn: bool) -> None:
        self.num_bytes = len(content)
        self._left = memoryview(content)[: len(content) // 2] if is_torn else memoryview(content)
        self._is_torn = is_torn

    def __enter__(self) -> "Body":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def readinto(self, buffer: memoryview, /) -> int:
        size = min(len(buffer), len(self._left))
        if not size and self._is_torn and len(buffer):
            raise ClientGoneError("the body ended early: nothing of it is kept")
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    def stop(self) -> None:
        return None


class RolloutClient:
    """`services.http.clients.rollout.RolloutClient`: routes call what the service's routes call."""

    world: "World"

    def __init__(self, url: str, *, timeout_s: float = 300.0, **_: Any) -> None:
        self.url = url
        self._timeout_s = timeout_s

    async def __aenter__(self) -> "RolloutClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def policy(self) -> PolicyInfo:
        return await self._ask(lambda server: server.process.policy())

    async def stage(self, request: StageRequest) -> PolicyInfo:
        return await self._ask(lambda server: server.stage(request))

    async def commit(self, request: CommitRequest) -> PolicyInfo:
        return await self._ask(lambda server: server.commit(request))

    async def abort(self, request: CommitRequest) -> PolicyInfo:
        return await self._ask(lambda server: server.abort(request))

    async def upload(self, file: Path, version: Version) -> PolicyInfo:
        content = await asyncio.to_thread(file.read_bytes)
        await asyncio.sleep(self.world.rng.random() * 0.2)
        is_torn = self.world.rng.random() < self.world.torn_uploads
        return await self._ask(lambda server: server.upload(version, Body(content, is_torn)))

    async def pass_on(self, request: PassOnRequest) -> PolicyInfo:
        return await self._ask(lambda server: server.pass_on(request))

    async def _ask(self, work: Callable[[Any], Any]) -> PolicyInfo:
        name = self.url.partition("//")[2].partition(":")[0]
        world = self.world
        try:
            found: PolicyInfo = await world.network.ask(
                name, lambda: work(world.servers[name]), self._timeout_s
            )
        except SilentError as error:
            raise WaitTimeoutError(f"{self.url} is silent") from error
        except (RefusedError, BrokenError) as error:
            raise UnavailableError(f"{self.url} is not reachable: {error}") from error
        except SggError:
            raise
        except Exception as error:  # a 500
            raise SggError(f"the service failed: {error!r}") from error
        return found


class RewardClient:
    """`services.http.clients.reward.RewardClient`."""

    world: "World"
    url = "http://reward:8100"

    def __init__(self, _: str, *, timeout_s: float, **__: Any) -> None:
        self._timeout_s = timeout_s

    async def score(self, request: RewardRequest) -> RewardResponse:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        while True:
            left_s = deadline - loop.time()
            try:
                found: RewardResponse = await self.world.network.ask(
                    "reward", lambda: self.world.reward.score(request), left_s
                )
            except SilentError as error:
                raise WaitTimeoutError(f"{self.url} is silent") from error
            except (RefusedError, BrokenError) as error:
                if loop.time() + 0.5 >= deadline:
                    raise UnavailableError(f"{self.url} is not reachable: {error}") from error
                await asyncio.sleep(0.5)
            else:
                return found

    async def aclose(self) -> None:
        return None
