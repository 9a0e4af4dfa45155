"""What a real Redis answers in a bad moment, and what somebody else may have put there."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.errors import UnavailableError
from services.host.ports import free_port
from services.images import ImageStore
from services.redis.backlog import read_backlog
from services.redis.client import connect
from services.redis.keys import CONSUMER_GROUPS, PROMPT_LANES, RunKeys
from services.redis.queue import RedisQueue
from services.redis.registry import Registry, RunOwner
from services.redis.sentinel import SentinelUrl
from services.schemas.weights import ServerRecord
from tests.conftest import RedisStarter

LANE = PROMPT_LANES[3]
OWNER = RunOwner("1", "h:/runs/a")
RECORD = ServerRecord(
    server_id="a",
    url="http://127.0.0.1:1",
    host="h",
    gpu=None,
    state="ready",
    policy_version=0,
    tokens_per_s=0,
    groups_done=0,
)
REPLICATES = ("REPLICAOF", "127.0.0.1", "1")
PRIMARY = ("REPLICAOF", "NO", "ONE")
SETS = ("CONFIG", "SET")
TROUBLES: dict[str, tuple[list[tuple[str, ...]], list[tuple[str, ...]]]] = {
    "READONLY": ([REPLICATES], [PRIMARY]),
    "MASTERDOWN|READONLY": (
        [(*SETS, "replica-serve-stale-data", "no"), REPLICATES],
        [PRIMARY, (*SETS, "replica-serve-stale-data", "yes")],
    ),
    "NOREPLICAS": (
        [(*SETS, "min-replicas-to-write", "1")],
        [(*SETS, "min-replicas-to-write", "0")],
    ),
    "OOM": ([(*SETS, "maxmemory", "1")], [(*SETS, "maxmemory", "0")]),
}


@pytest.fixture(scope="module")
def own_url(start_redis: RedisStarter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis of its own, so that no other test is disturbed."""
    port = free_port()
    server = start_redis(tmp_path_factory.mktemp("own"), port)
    yield f"redis://127.0.0.1:{port}/0"
    server.kill()
    server.wait()


@pytest.fixture
async def own(own_url: str) -> AsyncIterator[Redis]:
    client = connect(own_url)
    yield client
    await client.aclose()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.mark.parametrize("code", TROUBLES)
async def test_a_bad_moment_of_redis_is_waited_for(
    own: Redis, run_keys: RunKeys, code: str
) -> None:
    """A script, a command and a pipeline each tell the same."""
    queue, registry = RedisQueue(own, run_keys), Registry(own, run_keys)
    begin, end = TROUBLES[code]
    for command in begin:
        await own.execute_command(*command)  # type: ignore[no-untyped-call]
    try:
        for call in (
            queue.enqueue(LANE, "g", b"1"),
            queue.claim(LANE, "a", lease_s=60, block_s=0),
            registry.heartbeat(RECORD),
            registry.next_incarnation(OWNER),
        ):
            with pytest.raises(UnavailableError, match=code):
                await call
    finally:
        for command in end:
            await own.execute_command(*command)  # type: ignore[no-untyped-call]
    assert await queue.enqueue(LANE, "g", b"1")
    await registry.heartbeat(RECORD)
    assert await registry.servers() == [RECORD]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    "entry",
    [{"body": b"1"}, {"id": b"g"}, {"id": b"\xff\xfe", "body": b"1"}, {"id": "", "body": b"1"}],
    ids=["no id", "no body", "not UTF-8", "empty"],
)
async def test_an_entry_of_somebody_else_is_set_aside_once_and_the_next_one_comes(
    client: Redis,
    run_keys: RunKeys,
    entry: dict[Any, Any],
    waits: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = RedisQueue(client, run_keys)
    await queue.claim(LANE, "a", lease_s=60, block_s=0)  # its consumer group is there
    await client.xadd(run_keys.stream(LANE), entry)
    await queue.enqueue(LANE, "mine", b"2")
    if waits:
        lease = None
        while lease is None:
            lease = await queue._wait_for_new([LANE], "a", 1.0)
    else:
        lease = await queue.claim(LANE, "a", lease_s=60, block_s=0)
    assert lease is not None
    assert (lease.work_id, lease.body) == ("mine", b"2")
    assert await queue.length(LANE) == 1
    (letter,) = await queue.dead_letters()
    assert (letter.stream, letter.failures[0][:25]) == (LANE, "the entry has no id and b")
    assert caplog.text.count("is set aside among the dead") == 1


async def test_a_foreign_entry_whose_lease_expired_is_set_aside_too(
    client: Redis, run_keys: RunKeys
) -> None:
    queue = RedisQueue(client, run_keys, max_expiries=0)
    await queue.claim(LANE, "a", lease_s=60, block_s=0)
    await client.xadd(run_keys.stream(LANE), {"what": "ever"})
    await client.xreadgroup(CONSUMER_GROUPS[LANE], "gone", {run_keys.stream(LANE): ">"}, count=1)
    await asyncio.sleep(0.01)
    assert await queue.claim(LANE, "b", lease_s=0.001, block_s=0.05) is None
    assert (await queue.length(LANE), len(await queue.dead_letters())) == (0, 1)
    assert await queue.purge(LANE, 1) == []


@pytest.mark.parametrize("failures", ['["' + "\\ud800" + '"]', '{"a":' * 3000, "[" * 100_000])
async def test_failures_of_somebody_else_end_nobody(
    client: Redis, run_keys: RunKeys, failures: str
) -> None:
    """Trainer, monitor and `sgg-rl dead list` read them."""
    queue = RedisQueue(client, run_keys)
    await client.xadd(run_keys.dead, {"stream": LANE, "id": "a", "failures": failures})
    ((text,),) = [letter.failures for letter in await queue.dead_letters()]
    assert failures.endswith(text)
    assert [notice.failures for notice in await queue.dead_notices()] == [[text]]


async def test_dead_letters_of_somebody_else_are_shown_as_far_as_they_can_be(
    client: Redis, run_keys: RunKeys
) -> None:
    queue = RedisQueue(client, run_keys)
    await client.xadd(run_keys.dead, {"what": "ever"})
    entry: Any = await client.xadd(run_keys.dead, {"stream": b"\xff", "failures": b"no JSON"})
    first, second = await queue.dead_letters()
    assert (first.stream, first.work_id, first.body, first.failures) == ("", "", b"", [])
    assert second.failures == ["no JSON"]
    assert await queue.drop(entry.decode())


async def test_keys_of_another_type_are_set_aside_and_the_run_goes_on(
    client: Redis, run_keys: RunKeys, caplog: pytest.LogCaptureFixture
) -> None:
    queue, registry = RedisQueue(client, run_keys), Registry(client, run_keys)
    for key in run_keys.types:
        await client.lpush(key, "not yours")
    with pytest.raises(UnavailableError, match="WRONGTYPE"):
        await queue.enqueue(LANE, "g", b"1")
    with pytest.raises(UnavailableError, match="WRONGTYPE"):
        await registry.servers()
    assert await registry.policy() is None
    assert (await read_backlog(client, run_keys, PROMPT_LANES)).waiting == 0
    await registry.set_aside()
    await registry.set_aside()
    assert caplog.text.count("it is set aside as") == len(run_keys.types)
    assert await client.lrange(f"{run_keys.prefix}aside:servers", 0, -1) == [b"not yours"]
    assert await queue.enqueue(LANE, "g", b"1")
    assert await registry.servers() == []
    assert await registry.next_incarnation(OWNER) == 1


async def test_a_result_is_not_lost_to_a_stream_of_another_type(
    client: Redis, run_keys: RunKeys
) -> None:
    """The move ends before it writes, so that it can be made again."""
    queue = RedisQueue(client, run_keys)
    await queue.enqueue(LANE, "g", b"1")
    lease = await queue.claim(LANE, "a", lease_s=60, block_s=0)
    assert lease is not None
    await client.set(run_keys.stream("rollouts"), "not yours")
    with pytest.raises(UnavailableError, match="WRONGTYPE"):
        await queue.complete(lease, result_stream="rollouts", result=b"r")
    await Registry(client, run_keys).set_aside()
    assert await queue.complete(lease, result_stream="rollouts", result=b"r")
    found = await queue.claim("rollouts", "t", lease_s=60, block_s=0)
    assert found is not None
    assert found.body == b"r"


async def test_guards_of_another_type_count_as_none(client: Redis, run_keys: RunKeys) -> None:
    queue = RedisQueue(client, run_keys)
    await queue.enqueue(LANE, "g", b"1")
    await client.delete(run_keys.seen(LANE, "g"))
    for key in (run_keys.seen(LANE, "g"), run_keys.failures(LANE, "g")):
        await client.hset(key, "not", "yours")
    lease = await queue.claim(LANE, "a", lease_s=60, block_s=0)
    assert lease is not None
    assert not await queue.fail(lease, "first", max_deliveries=2)
    lease = await queue.claim(LANE, "a", lease_s=60, block_s=0)
    assert lease is not None
    assert lease.failures == ["first"]
    assert await queue.complete(lease)


async def test_a_record_that_cannot_be_read_costs_itself_and_is_said_once(
    client: Redis, run_keys: RunKeys, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(client, run_keys)
    await registry.heartbeat(RECORD)
    await client.hset(run_keys.servers, "later", '{"server_id": "later", "of": "another release"}')
    await client.set(run_keys.heartbeat("later"), 1)
    await client.hset(run_keys.servers, b"\xff", b"\xfe")  # nobody beats for it
    for _ in range(3):
        assert await registry.servers() == [RECORD]
    assert caplog.text.count("the record of the server later in Redis cannot be read") == 1
    assert set(await client.hgetall(run_keys.servers)) == {b"a", b"later"}
    await client.mset({run_keys.policy: "x", run_keys.manifest: "{}"})
    await client.hset(run_keys.run, mapping={"incarnation": "many", "committed_step": "\xff"})
    assert await registry.policy() is None
    assert (await registry.incarnation(), await registry.committed_step()) == (0, 0)
    assert await registry.next_incarnation(OWNER, at_least=3) == 3


@pytest.mark.parametrize("field", ["policy_version", "groups_done", "groups_in_flight"])
async def test_a_number_that_no_float_holds_is_no_record(
    client: Redis, run_keys: RunKeys, field: str
) -> None:
    """The monitor shows it as one."""
    registry = Registry(client, run_keys)
    record = RECORD.model_dump(mode="json") | {field: 10**400}
    await client.hset(run_keys.servers, "a", json.dumps(record))
    await client.set(run_keys.heartbeat("a"), 1)
    assert await registry.servers() == []


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 400, "1e30", "inf", "-5", "0x10", "9" * 16])
async def test_what_no_trainer_wrote_is_no_incarnation(
    client: Redis, run_keys: RunKeys, number: str
) -> None:
    registry = Registry(client, run_keys)
    await client.hset(run_keys.run, mapping={"incarnation": number, "committed_step": number})
    assert (await registry.incarnation(), await registry.committed_step()) == (0, 0)
    await registry.commit_step(1, 4)
    assert await registry.committed_step() == 4
    assert await registry.next_incarnation(OWNER, at_least=3) == 3


async def test_an_image_of_somebody_else_gives_way(
    client: Redis, run_keys: RunKeys, tmp_path: Path
) -> None:
    here = ImageStore(tmp_path / "here", client, run_keys)
    there = ImageStore(tmp_path / "there", client, run_keys)
    ref = here.put(b"pixels")
    await client.lpush(run_keys.image(ref.sha256), "not yours")
    await here.share(ref)
    assert await there.fetch(ref) == b"pixels"


def test_the_url_of_sentinels() -> None:
    found = SentinelUrl.of("redis+sentinel://u:p%40@a:1,b,c:3/main/2")
    assert found == SentinelUrl(
        sentinels=[("a", 1), ("b", 26379), ("c", 3)],
        service="main",
        db=2,
        login={"username": "u", "password": "p@"},
    )
    assert SentinelUrl.of("redis://a:1/0") is None
    with pytest.raises(ValueError, match="host:port"):
        SentinelUrl.of("redis+sentinel://a:1")
