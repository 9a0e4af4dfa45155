"""Images reach servers on hosts that share no folder with the trainer, and only then use Redis."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.errors import NotFoundError
from services.images import ImageStore
from services.keys import RunKeys
from services.redis_client import connect
from services.registry import Registry
from services.schemas.weights import PolicyState, ServerRecord
from services.settings import Settings
from trainer.collection.image_sharing import ImageSharing


def server(host: str, state: PolicyState = "ready") -> ServerRecord:
    return ServerRecord(
        server_id=f"{host}-1",
        url="http://127.0.0.1:1",
        host=host,
        gpu=None,
        state=state,
        policy_version=0,
        tokens_per_s=0,
        groups_done=0,
    )


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def sharing(tmp_path: Path, redis_url: str, run_keys: RunKeys) -> AsyncIterator[ImageSharing]:
    settings = Settings.model_validate(
        {
            "run": {"name": run_keys.prefix.split(":")[1], "root": str(tmp_path)},
            "model": {"path": "none", "box_space": "relative_1000"},
            "data": {"train": "none"},
            "redis": {"url": redis_url},
        }
    )
    sharing = ImageSharing(settings)
    yield sharing
    await sharing.aclose()


async def test_only_another_host_needs_images_in_redis(
    sharing: ImageSharing, redis: Redis, run_keys: RunKeys, tmp_path: Path
) -> None:
    here = ImageStore(tmp_path / run_keys.prefix.split(":")[1] / "images")
    there = ImageStore(tmp_path / "another host", redis, run_keys)
    registry = Registry(redis, run_keys)
    ref = here.put(b"pixels")
    await registry.heartbeat(server(socket.gethostname()))
    await sharing.look()
    await sharing.share([ref])
    with pytest.raises(NotFoundError):
        await there.fetch(ref)
    await registry.heartbeat(server("another", state="starting"))
    await sharing.look()
    await sharing.share([ref])
    assert await there.fetch(ref) == b"pixels"
