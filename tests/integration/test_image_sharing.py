"""Images reach servers that do not see the trainer's store, only then by Redis; none stays."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.errors import NotFoundError
from services.images import ImageStore
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.registry import Registry
from services.schemas.weights import PolicyState, ServerRecord
from services.settings import Settings
from trainer.collection.image_sharing import ImageSharing


def server(host: str, image_store: str | None, state: PolicyState = "ready") -> ServerRecord:
    return ServerRecord(
        server_id=f"{host}-1",
        url="http://127.0.0.1:1",
        host=host,
        gpu=None,
        state=state,
        policy_version=0,
        tokens_per_s=0,
        groups_done=0,
        image_store=image_store,
    )


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def sharing(tmp_path: Path, redis: Redis, run_keys: RunKeys) -> ImageSharing:
    settings = Settings.model_validate(
        {
            "run": {"name": run_keys.prefix.split(":")[1], "root": str(tmp_path)},
            "model": {"path": "none", "box_space": "relative_1000"},
            "data": {"train": "none"},
        }
    )
    return ImageSharing(settings, redis)


async def test_only_who_sees_another_store_needs_images_in_redis(
    sharing: ImageSharing, redis: Redis, run_keys: RunKeys, tmp_path: Path
) -> None:
    folder = tmp_path / run_keys.prefix.split(":")[1] / "images"
    here = ImageStore(folder)
    there = ImageStore(tmp_path / "another host", redis, run_keys)
    registry = Registry(redis, run_keys)
    ref = here.put(b"pixels")
    await sharing.look()
    await registry.heartbeat(server("container", here.seen_sign()))
    await sharing.look()
    await sharing.share([ref])
    with pytest.raises(NotFoundError):
        await there.fetch(ref)
    there.sign()
    await registry.heartbeat(server("another", there.seen_sign(), state="starting"))
    await sharing.look()
    await sharing.share([ref])
    assert await there.fetch(ref) == b"pixels"


async def test_images_that_nobody_needs_go(
    sharing: ImageSharing, redis: Redis, run_keys: RunKeys, tmp_path: Path
) -> None:
    store = ImageStore(tmp_path / run_keys.prefix.split(":")[1] / "images")
    earlier, asked, done = store.put(b"of an earlier start"), store.put(b"a"), store.put(b"b")
    await Registry(redis, run_keys).heartbeat(server("another", None))
    await sharing.look()
    await sharing.share([asked, done])
    await sharing.keep_only({asked.sha256})
    assert [store.has(ref) for ref in (earlier, asked, done)] == [False, True, False]
    held = [key.decode() async for key in redis.scan_iter(run_keys.image("*"))]
    assert held == [run_keys.image(asked.sha256)]
    store.put(b"b")
    await sharing.share([done])  # it is asked for again
    await sharing.keep_only(set())
    assert store.names() == set()
