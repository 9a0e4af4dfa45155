"""How a run is, by its folder, its services and Redis: read once, watched; its dead groups."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from redis.asyncio import Redis
from rich.console import Group
from rich.live import Live
from rich.text import Text

from cli.views.status import HostStatus, RunStatus, host_view, status_view
from launcher.views.terminal import SafeConsole
from services.errors import UnavailableError
from services.http.probe import http_probe
from services.redis.check import check_redis
from services.redis.client import connect
from services.redis.keys import PROMPT_LANES, RunKeys
from services.redis.queue import RedisQueue
from services.redis.registry import Registry
from services.run_folder import last_error, read_progress, read_trainer
from services.settings import Settings

_REFRESH_S = 2.0
T = TypeVar("T")


def read_host(settings: Settings) -> HostStatus:
    """What the run's folder and its reward service say now."""
    files = settings.run.files
    there = next(path for path in (files.path, *files.path.absolute().parents) if path.exists())
    disk = shutil.disk_usage(there)
    return HostStatus(
        progress=read_progress(files),
        trainer=read_trainer(files),
        reward=http_probe(f"{settings.reward.url}/healthz")(),
        disk_free_gib=disk.free / 2**30,
        disk_gib=disk.total / 2**30,
        last_error=last_error(files),
    )


def read_status(settings: Settings) -> RunStatus:
    """The run's status now."""
    return _with_redis(settings, partial(_read, settings, read_host(settings)))


def watch_status(settings: Settings) -> None:
    """Show it until Ctrl-C, also while Redis is away."""

    async def watch(live: Live) -> None:
        async with aclosing(connect(settings.redis)) as redis:
            while True:
                host = await asyncio.to_thread(read_host, settings)
                try:
                    view = status_view(await _read(settings, host, redis))
                except UnavailableError as error:
                    view = Group(host_view(host), Text(error.message, style="yellow"))
                live.update(view, refresh=True)
                await asyncio.sleep(_REFRESH_S)

    with Live(console=SafeConsole(), screen=True, auto_refresh=False) as live:
        asyncio.run(watch(live))


def with_queue(settings: Settings, work: Callable[[RedisQueue], Awaitable[T]]) -> T:
    """What `work` makes of the run's queue."""
    keys = RunKeys(settings.run.name)
    return _with_redis(settings, lambda redis: work(RedisQueue(redis, keys)))


def _with_redis(settings: Settings, work: Callable[[Redis], Awaitable[T]]) -> T:
    async def run() -> T:
        async with aclosing(connect(settings.redis)) as redis:
            await check_redis(redis)
            return await work(redis)

    return asyncio.run(run())


async def _read(settings: Settings, host: HostStatus, redis: Redis) -> RunStatus:
    keys = RunKeys(settings.run.name)
    registry, queue = Registry(redis, keys), RedisQueue(redis, keys)
    published = await registry.policy()
    return RunStatus(
        **dict(host),
        run=settings.run.name,
        policy=published[0] if published else None,
        incarnation=await registry.incarnation(),
        committed_step=await registry.committed_step(),
        servers=await registry.servers(starting=True),
        queues={
            "prompts": await queue.length(PROMPT_LANES),
            "rollouts": await queue.length("rollouts"),
            "dead": await queue.num_dead(),
        },
    )
