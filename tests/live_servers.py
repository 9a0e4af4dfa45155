"""Rollout servers in this process, on real uvicorn and real Redis, with engines made for a test."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from rollout_service.engine import Engine
from rollout_service.http.app import RolloutProcess
from services.host.ports import free_port
from services.http import app as service
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.registry import Registry
from services.schemas.weights import PolicyInfo, ServerRecord
from services.settings import Settings
from tests.processes import wait_for


class LiveServer:
    """One server, from `serving`."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        self.process = RolloutProcess(settings, lambda: engine)
        self.stop: Callable[[], None] = lambda: None
        """Ends it before its block does, where the test says how."""

    @property
    def url(self) -> str:
        return self.settings.rollout.url

    def policy(self) -> PolicyInfo:
        answer = httpx.get(f"{self.url}/v1/policy", trust_env=False, headers=self._token())
        return PolicyInfo.model_validate_json(answer.content)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def _token(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.settings.data_token}"}


def registered(settings: Settings) -> list[ServerRecord]:
    """Servers of a run, as others see them."""

    async def read() -> list[ServerRecord]:
        redis = connect(settings.redis)
        try:
            return await Registry(redis, RunKeys(settings.run.name)).servers()
        finally:
            await redis.aclose()

    return asyncio.run(read())


def wait_registered(server: LiveServer) -> LiveServer:
    """A server answers over HTTP before others see that it is ready."""

    def is_known() -> bool:
        records = registered(server.settings)
        return any(r.url == server.url and r.state == "ready" for r in records)

    wait_for("a record", is_known)
    return server


@contextmanager
def serving(
    settings: Settings, engine: Engine, *, reached_as: str | None = None
) -> Iterator[LiveServer]:
    """A server on a port of its own, until the end of the block; then it drains and stops.

    It listens at `rollout.url` where others reach it by another address.
    """
    own = settings.rollout.url if reached_as else f"http://127.0.0.1:{free_port()}"
    rollout = settings.rollout.model_copy(update={"url": reached_as or own})
    server = LiveServer(settings.model_copy(update={"rollout": rollout}), engine)
    with served(server.process.app, own):
        wait_for("a server", server.is_ready, 400)  # vLLM's first start on a busy machine
        yield server


@contextmanager
def served(app: FastAPI, url: str) -> Iterator[None]:
    """An app at its address, in a thread of this process."""
    http = uvicorn.Server(service.server_config(app))
    app.state.is_stopping = lambda: http.should_exit
    listener = service.bind(app, url)
    thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_for("a service", lambda: http.started)
        yield
    finally:
        http.should_exit = True
        thread.join(30)
        listener.close()


def cluster_settings(
    folder: Path, run: str, redis_url: str, transport: str, encoding: str = "whole"
) -> Settings:
    """Settings of a run whose servers and trainer ask each other for tokens."""
    for name in ("data", "admin"):
        file = folder / f"{name}.token"
        file.touch(mode=0o600)
        file.write_text(f"{name}-secret")
    return Settings.model_validate(
        {
            "run": {"name": run, "root": str(folder)},
            "model": {"path": "none", "dtype": "float32", "box_space": "relative_1000"},
            "data": {"train": "unused"},
            "redis": {"url": redis_url, "lease_s": 3},
            "rollout": {"engine": "fake", "fake_tokens_per_s": 20_000},
            "trainer": {"wait_timeout_s": 30},
            "weights": {"transport": transport, "encoding": encoding},
            "security": {
                "data_token_file": str(folder / "data.token"),
                "admin_token_file": str(folder / "admin.token"),
            },
        }
    )
