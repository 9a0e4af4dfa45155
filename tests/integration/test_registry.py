"""Servers, policy and run keys in a real Redis; images of hosts that share no folder."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from planning.preflight.services import check_run_name
from services.errors import (
    ConflictError,
    NotFoundError,
    SettingsError,
    SupersededError,
    UnavailableError,
)
from services.host.ports import free_port
from services.images import ImageStore
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.registry import Registry, RunOwner, open_registry
from services.run_folder import RunFolder
from services.schemas.weights import (
    PolicyRecord,
    ServerRecord,
    TensorEntry,
    WeightManifest,
    manifest_checksum,
)
from services.settings import Settings

OWNER = RunOwner("1", "h:/runs/a")


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def registry(client: Redis, run_keys: RunKeys) -> Registry:
    return Registry(client, run_keys)


def server(name: str, version: int = 0) -> ServerRecord:
    return ServerRecord(
        server_id=name,
        url="http://127.0.0.1:1",
        host="h",
        gpu=None,
        state="ready",
        policy_version=version,
        tokens_per_s=1.5,
        groups_done=2,
    )


def version(number: int, incarnation: int = 1) -> tuple[PolicyRecord, WeightManifest]:
    tensor = TensorEntry(shape=[2, 3], dtype="float32", digest="a" * 64)
    manifest = WeightManifest(
        policy_version=number,
        incarnation=incarnation,
        step=number,
        vision_trained=False,
        tensors={"w": tensor},
    )
    record = PolicyRecord(
        policy_version=number,
        incarnation=incarnation,
        checksum=manifest_checksum(manifest),
        transport="shm",
    )
    return record, manifest


async def test_servers_live_while_they_beat(
    registry: Registry, client: Redis, run_keys: RunKeys
) -> None:
    assert await registry.servers() == []
    await registry.heartbeat(server("b"))
    await registry.heartbeat(server("a"), ttl_s=1.0)
    await registry.heartbeat(server("b", version=3))
    assert await registry.servers() == [server("a"), server("b", version=3)]
    await asyncio.sleep(1.2)
    assert await registry.servers() == [server("b", version=3)]
    assert await client.hlen(run_keys.servers) == 1, "the dead one is pruned"
    await registry.unregister("b")
    assert await registry.servers() == []


async def test_a_starting_server_takes_the_place_of_those_that_had_its_address(
    registry: Registry, client: Redis, run_keys: RunKeys
) -> None:
    """In place of a killed server's record; what is of other addresses or no record stays."""
    elsewhere = server("elsewhere").model_copy(update={"url": "http://127.0.0.2:1"})
    for record in (server("killed"), server("killed before"), elsewhere):
        await registry.heartbeat(record)
    for name, alien in {"a": "no JSON", "b": '"a text"', "c": '{"url": 1}'}.items():
        await client.hset(run_keys.servers, name, alien)
        await client.set(run_keys.heartbeat(name), 1)
    await registry.register(server("starting"))
    assert await registry.servers() == [elsewhere, server("starting")]
    assert await client.hlen(run_keys.servers) == 5
    await registry.register(server("starting", version=1))
    assert await registry.servers() == [elsewhere, server("starting", version=1)]
    assert 0 < await client.pttl(run_keys.heartbeat("starting")) <= 15_000


async def test_policy_and_manifest_change_together(registry: Registry) -> None:
    assert await registry.policy() is None
    await registry.publish_policy(*version(1))
    await registry.publish_policy(*version(2))
    assert await registry.policy() == version(2)


async def test_an_earlier_trainer_is_fenced_off(registry: Registry) -> None:
    first = await registry.next_incarnation(OWNER)
    second = await registry.next_incarnation(OWNER)
    assert (first, second, await registry.incarnation()) == (1, 2, 2)
    await registry.publish_policy(*version(5, incarnation=2))
    await registry.commit_step(2, 5)
    with pytest.raises(ConflictError, match="superseded"):
        await registry.publish_policy(*version(9, incarnation=1))
    with pytest.raises(ConflictError, match="superseded"):
        await registry.commit_step(1, 9)
    assert await registry.policy() == version(5, incarnation=2)
    assert await registry.committed_step() == 5


async def test_a_name_is_one_folder_s(registry: Registry, client: Redis, run_keys: RunKeys) -> None:
    other = RunOwner("2", "h:/tutorial/runs/a")
    await registry.check_name(other)
    assert await registry.next_incarnation(OWNER) == 1
    for ask in (registry.check_name, registry.next_incarnation):
        with pytest.raises(SettingsError, match=r"folder, h:/runs/a: .*--set run.name=test-.*-2\)"):
            await ask(other)
    assert await registry.incarnation() == 1, "the run that has the name notices nothing"
    moved = OWNER._replace(place="g:/archive/a")
    assert await registry.next_incarnation(moved) == 2
    anew = RunOwner("3", moved.place)
    assert await registry.next_incarnation(anew) == 3, "its folder was deleted"
    await client.delete(run_keys.run)
    assert await registry.reassert(*version(4, incarnation=3), 3, anew)
    with pytest.raises(SettingsError, match="g:/archive/a"):
        await registry.next_incarnation(other)


def test_a_trainer_of_another_folder_is_refused_before_it_loads(
    redis_url: str, run_keys: RunKeys, tmp_path: Path
) -> None:
    def settings(folder: str) -> Settings:
        run = {"root": tmp_path / folder, "name": run_keys.name}
        return Settings.model_validate(
            {"model": {"path": "m"}, "data": {"train": "d"}, "run": run}
        ).changed(redis={"url": redis_url})

    async def start(files: RunFolder) -> None:
        owner = RunOwner.of(files)
        async with open_registry(settings("here")) as registry:
            await registry.next_incarnation(owner)
        owner.keep(files)

    here = settings("here")
    asyncio.run(start(here.run.files))
    check_run_name(here)
    with pytest.raises(SettingsError, match=f"another folder, .*:{tmp_path}/here/"):
        check_run_name(settings("there"))
    (tmp_path / "here").rename(tmp_path / "there")
    check_run_name(settings("there"))
    check_run_name(here.changed(redis={"url": f"redis://127.0.0.1:{free_port()}/0"}))


async def test_an_incarnation_rises_even_when_redis_lost_its_data(registry: Registry) -> None:
    assert await registry.next_incarnation(OWNER, at_least=8) == 8
    assert await registry.next_incarnation(OWNER, at_least=3) == 9


async def test_two_starts_at_once_never_get_one_incarnation(
    redis_url: str, run_keys: RunKeys
) -> None:
    clients = [connect(redis_url) for _ in range(8)]
    starts = [Registry(client, run_keys).next_incarnation(OWNER, at_least=5) for client in clients]
    assert sorted(await asyncio.gather(*starts)) == list(range(5, 13))
    for client in clients:
        await client.aclose()


async def test_what_redis_forgot_is_written_again_and_nothing_that_is_later(
    registry: Registry, client: Redis, run_keys: RunKeys
) -> None:
    policy, manifest = version(4, incarnation=2)
    assert await registry.reassert(policy, manifest, 3, OWNER), "Redis was emptied"
    assert await registry.policy() == (policy, manifest)
    assert (await registry.incarnation(), await registry.committed_step()) == (2, 3)
    assert not await registry.reassert(policy, manifest, 3, OWNER)
    await registry.publish_policy(*version(3, incarnation=2))  # a replica that lagged
    assert await registry.reassert(policy, manifest, 3, OWNER)
    await client.set(run_keys.policy, "[")
    assert await registry.reassert(policy, manifest, 3, OWNER)
    await registry.publish_policy(*version(5, incarnation=2))
    await registry.commit_step(2, 5)
    assert not await registry.reassert(policy, manifest, 3, OWNER)
    assert await registry.policy() == version(5, incarnation=2)
    assert await registry.committed_step() == 5
    await registry.next_incarnation(OWNER)
    with pytest.raises(SupersededError):
        await registry.reassert(*version(6, incarnation=2), 6, OWNER)


@pytest.mark.parametrize(
    "damage",
    [
        {"policy": "{}"},
        {"policy": json.dumps(version(5)[0].model_dump() | {"policy_version": 10**400})},
        {"policy": json.dumps(version(5)[0].model_dump() | {"checksum": "none"})},
        {"manifest": "{}"},
        {"manifest": version(4)[1].model_dump_json()},
    ],
)
async def test_what_somebody_else_wrote_over_the_policy_is_written_again(
    registry: Registry, client: Redis, run_keys: RunKeys, damage: dict[str, str]
) -> None:
    policy, manifest = version(5)
    await registry.publish_policy(policy, manifest)
    await registry.commit_step(1, 3)
    await client.hset(run_keys.run, "incarnation", 1)
    await client.mset({f"{run_keys.prefix}{name}": text for name, text in damage.items()})
    assert await registry.reassert(policy, manifest, 3, OWNER)
    assert await registry.policy() == (policy, manifest)
    assert not await registry.reassert(policy, manifest, 3, OWNER)


async def test_an_image_reaches_a_host_without_the_folder(
    tmp_path: Path, client: Redis, run_keys: RunKeys
) -> None:
    here = ImageStore(tmp_path / "here", client, run_keys)
    there = ImageStore(tmp_path / "there", client, run_keys)
    ref = here.put(b"pixels")
    with pytest.raises(NotFoundError):
        await there.fetch(ref)
    await here.share(ref)
    await here.share(ref)
    assert await client.ttl(run_keys.image(ref.sha256)) > 60
    assert await there.fetch(ref) == b"pixels"
    await client.delete(run_keys.image(ref.sha256))
    with pytest.raises(NotFoundError):
        await there.fetch(ref)  # it would keep a copy of the dataset on each host


async def test_a_damaged_image_in_redis_is_not_given_out(
    tmp_path: Path, client: Redis, run_keys: RunKeys
) -> None:
    ref = ImageStore(tmp_path / "here").put(b"pixels")
    await client.set(run_keys.image(ref.sha256), b"pixelz")
    with pytest.raises(NotFoundError):
        await ImageStore(tmp_path / "there", client, run_keys).fetch(ref)


async def test_without_redis_everything_is_unavailable(run_keys: RunKeys, tmp_path: Path) -> None:
    client = connect(f"redis://127.0.0.1:{free_port()}/0")
    registry = Registry(client, run_keys)
    for call in (registry.servers, registry.policy, partial(registry.next_incarnation, OWNER)):
        with pytest.raises(UnavailableError):
            await call()
    ref = ImageStore(tmp_path).put(b"x")
    with pytest.raises(UnavailableError):
        await ImageStore(tmp_path / "other", client, run_keys).fetch(ref)
    await client.aclose()
