"""What every work queue promises, over both implementations, and over the simulated Redis."""

import asyncio
from collections.abc import AsyncIterator
from itertools import chain
from typing import Any

import pytest

from monitor_service.dead import DeadKind, DeadLetters
from services.errors import NotFoundError, UnavailableError
from services.host.ports import free_port
from services.redis.client import connect
from services.redis.keys import PROMPT_LANES, RunKeys
from services.redis.lua import MAX_DEAD
from services.redis.queue import GUARD_TTL_S, MAX_ERROR_CHARACTERS, Lease, RedisQueue
from tests.memory_queue import MemoryQueue
from tests.simulation.clients import NearRedis

LANE = PROMPT_LANES[3]
LONG_S = 60.0
SHORT_S = 0.05


@pytest.fixture(params=["memory", "redis", "simulated"])
async def queue(request: pytest.FixtureRequest, run_keys: RunKeys) -> AsyncIterator[RedisQueue]:
    if request.param == "memory":
        yield MemoryQueue(max_expiries=3)
        return
    if request.param == "simulated":
        simulated: Any = NearRedis()
        yield RedisQueue(simulated, run_keys, max_expiries=3)
        return
    client = connect(request.getfixturevalue("redis_url"))
    yield RedisQueue(client, run_keys, max_expiries=3)
    await client.aclose()


async def claim(queue: RedisQueue, consumer: str = "a", *, lease_s: float = LONG_S) -> Lease:
    lease = await queue.claim(LANE, consumer, lease_s=lease_s, block_s=5)
    assert lease is not None
    return lease


async def nothing(queue: RedisQueue, consumer: str = "b", *, lease_s: float = LONG_S) -> bool:
    return await queue.claim(LANE, consumer, lease_s=lease_s, block_s=0) is None


async def test_items_come_in_order_with_their_body(queue: RedisQueue) -> None:
    body = bytes(range(256))
    assert await queue.enqueue(LANE, "g1#0", body)
    assert await queue.enqueue(LANE, "g2#0", b"2")
    first, second = await claim(queue), await claim(queue)
    assert (first.work_id, first.body, first.failures) == ("g1#0", body, [])
    assert second.work_id == "g2#0"
    assert await nothing(queue)


async def test_an_item_is_enqueued_once_even_after_it_ended(queue: RedisQueue) -> None:
    assert await queue.enqueue(LANE, "g1", b"1")
    assert not await queue.enqueue(LANE, "g1", b"1")
    await queue.complete(await claim(queue))
    assert not await queue.enqueue(LANE, "g1", b"1")
    assert await queue.length(LANE) == 0


async def test_complete_moves_the_result_once(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "g1", b"1")
    lease = await claim(queue)
    assert await queue.complete(lease, result_stream="rollouts", result=b"r")
    assert not await queue.complete(lease, result_stream="rollouts", result=b"again")
    assert (await queue.length(LANE), await queue.length("rollouts")) == (0, 1)
    found = await queue.claim("rollouts", "t", lease_s=LONG_S, block_s=1)
    assert found is not None
    assert (found.work_id, found.body) == ("g1", b"r")
    assert not await queue.enqueue("rollouts", "g1", b"r")


async def test_a_waiting_reader_gets_what_comes(queue: RedisQueue) -> None:
    waiting = asyncio.create_task(claim(queue))
    await asyncio.sleep(0.1)
    await queue.enqueue(LANE, "g1", b"1")
    assert (await waiting).work_id == "g1"


async def test_an_expired_lease_goes_to_another_before_new_items(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "g1", b"1")
    await queue.enqueue(LANE, "g2", b"2")
    lost = await claim(queue, "a")
    assert lost.work_id == "g1"
    await asyncio.sleep(SHORT_S * 2)
    taken = await claim(queue, "b", lease_s=SHORT_S)
    assert taken.work_id == "g1"
    assert not await queue.renew(lost, "a"), "the first holder learns that it lost the item"
    assert await queue.renew(taken, "b")


async def test_an_expired_lease_is_found_behind_many_renewed_ones(queue: RedisQueue) -> None:
    for number in range(25):
        await queue.enqueue(LANE, f"g{number}", b"")
    leases = [await claim(queue, "a") for _ in range(25)]
    await asyncio.sleep(1.7)
    for lease in leases[:24]:
        assert await queue.renew(lease, "a")
    assert (await claim(queue, "b", lease_s=1.5)).work_id == "g24"


async def test_a_renewed_lease_stays(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "g1", b"1")
    lease = await claim(queue, "a")
    for _ in range(4):
        await asyncio.sleep(0.5)
        assert await queue.renew(lease, "a")
        assert await nothing(queue, "b", lease_s=1.5)
    assert not await queue.renew(lease, "b"), "only the holder renews"


async def test_the_same_consumer_does_not_renew_its_own_expired_lease(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "g1", b"1")
    old = await claim(queue, "a")
    await asyncio.sleep(SHORT_S * 2)
    new = await claim(queue, "a", lease_s=SHORT_S)
    assert not await queue.renew(old, "a")
    assert await queue.renew(new, "a")


async def test_whoever_finishes_first_wins(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "g1", b"1")
    slow = await claim(queue, "a")
    await asyncio.sleep(SHORT_S * 2)
    fast = await claim(queue, "b", lease_s=SHORT_S)
    assert await queue.complete(slow, result_stream="rollouts", result=b"slow")
    assert not await queue.complete(fast, result_stream="rollouts", result=b"fast")
    assert not await queue.renew(fast, "b"), "an ended item cannot be renewed"
    assert await queue.length("rollouts") == 1


async def test_failures_are_kept_and_the_last_one_is_death(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "g1", b"1")
    assert not await queue.fail(await claim(queue), "first", max_deliveries=2)
    second = await claim(queue, "b")
    assert second.failures == ["first"]
    assert await queue.fail(second, "second", max_deliveries=2)
    assert await nothing(queue)
    assert await queue.length(LANE) == 0
    (letter,) = await queue.dead_letters()
    assert (letter.stream, letter.work_id, letter.body) == (LANE, "g1", b"1")
    assert letter.failures == ["first", "second"]
    assert not await queue.complete(second, result_stream="rollouts", result=b"late")
    assert await queue.length("rollouts") == 0


async def test_an_item_that_had_ended_can_be_buried_once(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "a", b"{}")
    assert await queue.complete(await claim(queue))
    assert await queue.bury(LANE, "a", b"{}", "its answer is of no use")
    assert not await queue.bury(LANE, "a", b"{}", "its answer is of no use")
    (letter,) = await queue.dead_letters()
    assert (letter.stream, letter.work_id, letter.body) == (LANE, "a", b"{}")
    assert letter.failures == ["its answer is of no use"]
    assert await queue.length(LANE) == 0
    (notice,) = await queue.dead_notices()
    assert (notice.work_id, notice.failures) == ("a", ["its answer is of no use"])
    assert await queue.dead_notices(notice.entry_id) == []
    await queue.bury(LANE, "b", b"{}", "nor is this")
    (notice,) = await queue.dead_notices(notice.entry_id)
    assert (notice.stream, notice.work_id, await queue.num_dead()) == (LANE, "b", 2)


async def test_one_who_lost_the_lease_cannot_fail_or_release_the_item(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "g1", b"1")
    lost = await claim(queue, "a")
    await asyncio.sleep(SHORT_S * 2)
    held = await claim(queue, "b", lease_s=SHORT_S)
    assert not await queue.fail(lost, "timed out", max_deliveries=1)
    await queue.release(lost)
    assert await queue.dead_letters() == []
    assert await queue.renew(held, "b")
    assert await nothing(queue, "c")


async def test_finishing_ends_an_item_that_was_put_back(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "g1", b"1")
    slow = await claim(queue, "a")
    await asyncio.sleep(SHORT_S * 2)
    await queue.fail(await claim(queue, "b", lease_s=SHORT_S), "no", max_deliveries=5)
    assert await queue.complete(slow)
    assert await nothing(queue)
    assert await queue.length(LANE) == 0


async def test_release_hands_back_at_once_without_a_failure(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "g1", b"1")
    for _ in range(10):  # more often than failures or expiries are allowed
        await queue.release(await claim(queue))
    assert (await claim(queue, "b")).failures == []


async def test_an_item_that_kills_its_workers_is_dead_in_the_end(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "poison", b"1")
    await queue.enqueue(LANE, "good", b"2")
    await claim(queue)
    for _ in range(2):
        await asyncio.sleep(SHORT_S * 2)
        assert (await claim(queue, lease_s=SHORT_S)).work_id == "poison"
    await asyncio.sleep(SHORT_S * 2)
    assert (await claim(queue, lease_s=SHORT_S)).work_id == "good"
    (letter,) = await queue.dead_letters()
    assert letter.work_id == "poison"
    assert "lease expired 3 times" in letter.failures[-1]


async def test_purge_leaves_what_this_start_or_a_later_one_asks_for(queue: RedisQueue) -> None:
    """A trainer may have stood still in its start; the later one never asks for these again."""
    names = [f"run-e0-r0#{start}.0" for start in (9, 10, 11)]
    for name in names:
        await queue.enqueue(LANE, name, b"1")
    assert await queue.purge(LANE, 10) == names[:1]
    assert await queue.length(LANE) == 2


async def test_purge_ends_everything_claimed_or_not(queue: RedisQueue) -> None:
    await queue.enqueue(LANE, "g1", b"1")
    await queue.enqueue(LANE, "g2", b"2")
    lease = await claim(queue)
    assert sorted(await queue.purge(LANE, 1)) == ["g1", "g2"]
    assert await queue.purge(LANE, 1) == []
    assert not await queue.complete(lease, result_stream="rollouts", result=b"r")
    assert not await queue.renew(lease, "a")
    assert not await queue.fail(lease, "late", max_deliveries=1)
    assert await queue.length(LANE) == await queue.length("rollouts") == 0
    assert await queue.dead_letters() == []


async def test_drop_forgets(queue: RedisQueue) -> None:
    for name in ("g1", "g2"):
        await queue.enqueue(LANE, name, name.encode())
        await queue.fail(await claim(queue), "broken", max_deliveries=1)
    first, second = await queue.dead_letters()
    assert await queue.drop(second.entry_id)
    assert not await queue.drop(second.entry_id)
    assert await queue.dead_letters() == [first]


async def test_many_workers_finish_everything_exactly_once(queue: RedisQueue) -> None:
    names = {f"g{number}" for number in range(60)}
    for name in names:
        await queue.enqueue(LANE, name, b"")

    async def work(consumer: str) -> list[str]:
        ended = []
        while lease := await queue.claim(LANE, consumer, lease_s=LONG_S, block_s=0):
            assert await queue.complete(lease, result_stream="rollouts")
            ended.append(lease.work_id)
        return ended

    ended = await asyncio.gather(*(work(f"w{number}") for number in range(6)))
    assert sorted(chain.from_iterable(ended)) == sorted(names)
    assert await queue.length("rollouts") == len(names)


async def test_streams_are_read_in_order_of_preference(queue: RedisQueue) -> None:
    third, first, second = PROMPT_LANES[:3]
    for lane in (first, second, third):
        for number in range(2):
            await queue.enqueue(lane, f"{lane} {number}", b"")
    lanes = [first, second, third]
    got = [await queue.claim(lanes, "a", lease_s=LONG_S, block_s=0) for _ in range(6)]
    assert [lease.work_id for lease in got if lease] == [f"{s} {i}" for s in lanes for i in (0, 1)]
    assert [lease.stream for lease in got if lease] == [s for s in lanes for _ in (0, 1)]
    assert await queue.length(lanes) == 6


async def test_an_expired_lease_of_any_stream_comes_before_new_items(queue: RedisQueue) -> None:
    await queue.enqueue(PROMPT_LANES[9], "lost", b"1")
    await queue.claim(PROMPT_LANES[9], "a", lease_s=LONG_S, block_s=0)
    await queue.enqueue(PROMPT_LANES[0], "new", b"2")
    await asyncio.sleep(SHORT_S * 2)
    taken = await queue.claim(PROMPT_LANES, "b", lease_s=SHORT_S, block_s=0)
    assert taken is not None
    assert (taken.stream, taken.work_id, taken.delivery) == (PROMPT_LANES[9], "lost", 2)
    assert await queue.renew(taken, "b")
    assert await queue.complete(taken)


async def test_a_reader_of_many_streams_waits_for_all_of_them(queue: RedisQueue) -> None:
    waiting = asyncio.create_task(queue.claim(PROMPT_LANES, "a", lease_s=LONG_S, block_s=5))
    await asyncio.sleep(0.1)
    await queue.enqueue(PROMPT_LANES[15], "late", b"1")
    lease = await waiting
    assert lease is not None
    assert (lease.stream, lease.work_id) == (PROMPT_LANES[15], "late")


# What only Redis can do wrong.


class Hurried(RedisQueue):
    """Its first look always comes a moment too early."""

    async def _claim_now(self, *args: Any) -> Lease | None:
        return None


async def test_what_a_wait_finds_too_much_is_handed_back(redis_url: str, run_keys: RunKeys) -> None:
    client = connect(redis_url)
    queue = RedisQueue(client, run_keys)
    assert await queue.claim(PROMPT_LANES, "makes the groups", lease_s=LONG_S, block_s=0) is None
    for lane in PROMPT_LANES[:4]:
        await queue.enqueue(lane, lane, lane.encode())
    preferred = [*PROMPT_LANES[2:], *PROMPT_LANES[:2]]
    lease = await Hurried(client, run_keys).claim(preferred, "a", lease_s=LONG_S, block_s=5)
    assert lease is not None
    assert lease.work_id == PROMPT_LANES[2]
    for _ in range(3):
        other = await queue.claim(PROMPT_LANES, "b", lease_s=LONG_S, block_s=0)
        assert other is not None
        assert (other.work_id, other.body.decode(), other.failures) == (*[other.stream] * 2, [])
    assert await queue.claim(PROMPT_LANES, "b", lease_s=LONG_S, block_s=0) is None
    await client.aclose()


async def test_a_lease_on_an_entry_that_was_deleted_is_forgotten(
    redis_url: str, run_keys: RunKeys
) -> None:
    client = connect(redis_url)
    queue = RedisQueue(client, run_keys)
    await queue.enqueue(LANE, "g1", b"1")
    lease = await claim(queue)
    await client.xdel(run_keys.stream(LANE), lease.entry_id)
    await asyncio.sleep(SHORT_S * 2)
    assert await nothing(queue, lease_s=SHORT_S)
    assert (await client.xpending(run_keys.stream(LANE), "rollout"))["pending"] == 0
    await client.aclose()


async def test_a_stream_that_nobody_reads_is_refused(redis_url: str, run_keys: RunKeys) -> None:
    client = connect(redis_url)
    with pytest.raises(NotFoundError, match="prompts/0"):
        await RedisQueue(client, run_keys).enqueue("prompts", "g1", b"")
    await client.aclose()


async def test_a_group_that_redis_lost_is_made_again_with_its_items(
    redis_url: str, run_keys: RunKeys
) -> None:
    client = connect(redis_url)
    queue = RedisQueue(client, run_keys)
    await queue.enqueue(LANE, "g1", b"1")
    lease = await claim(queue)
    await client.xgroup_destroy(run_keys.stream(LANE), "rollout")
    assert not await queue.renew(lease, "a")
    assert (await claim(queue, "b")).work_id == "g1"
    await client.aclose()


async def test_a_result_survives_that_redis_lost_everything(
    redis_url: str, run_keys: RunKeys
) -> None:
    client = connect(redis_url)
    queue = RedisQueue(client, run_keys)
    await queue.enqueue(LANE, "g1", b"1")
    lease = await claim(queue)
    await client.delete(*[key async for key in client.scan_iter(f"{run_keys.prefix}*")])
    assert await queue.complete(lease, result_stream="rollouts", result=b"r")
    assert not await queue.enqueue(LANE, "g1", b"1")  # the trainer derives it again
    assert not await queue.complete(lease, result_stream="rollouts", result=b"r2")
    assert await queue.length("rollouts") == 1
    await client.aclose()


async def test_a_guard_lives_as_long_as_its_item_and_a_while(
    redis_url: str, run_keys: RunKeys
) -> None:
    client = connect(redis_url)
    queue = RedisQueue(client, run_keys)
    guard = run_keys.seen(LANE, "g1")
    await queue.enqueue(LANE, "g1", b"1")
    assert await client.ttl(guard) == -1, "an item may wait for longer than any time"
    await queue.complete(await claim(queue), result_stream="rollouts", result=b"r")
    assert 0 < await client.ttl(guard) <= GUARD_TTL_S
    assert await client.ttl(run_keys.seen("rollouts", "g1")) == -1
    await client.expire(guard, 5)
    assert not await queue.enqueue(LANE, "g1", b"1")
    assert await client.ttl(guard) > 5, "who asks for it again renews it"
    found = [key async for key in client.scan_iter(f"{run_keys.prefix}*")]
    assert len(found) == 4, "the lane, rollouts, a guard of each"
    await client.aclose()


async def test_the_last_dead_are_kept(redis_url: str, run_keys: RunKeys) -> None:
    client = connect(redis_url)
    queue, letters = RedisQueue(client, run_keys), DeadLetters(client, run_keys)
    for number in range(MAX_DEAD):
        await queue.bury("rollouts", f"g{number}", b"", "data: no")
    assert await letters.count() == {DeadKind("rollouts", "data"): MAX_DEAD}
    for number in range(30):
        await queue.bury("rollouts", f"later{number}", b"b", "of no use")
    assert await queue.num_dead() == MAX_DEAD
    kinds = {DeadKind("rollouts", "data"): MAX_DEAD - 30, DeadKind("rollouts", "refused"): 30}
    assert await letters.count() == kinds
    kept = await queue.dead_letters()
    assert [letter.work_id for letter in (kept[0], kept[-1])] == ["g30", "later29"]
    assert kept[-1].body == b"b"
    await client.aclose()


async def test_guards_expire_and_long_errors_are_cut(redis_url: str, run_keys: RunKeys) -> None:
    client = connect(redis_url)
    queue = RedisQueue(client, run_keys)
    await queue.enqueue(LANE, "g1", b"1")
    await queue.fail(await claim(queue), "x" * 100_000 + "cause", max_deliveries=2)
    (kept,) = (await claim(queue, "b", lease_s=LONG_S)).failures
    assert kept.endswith("cause")
    assert len(kept) == MAX_ERROR_CHARACTERS
    await queue.purge(LANE, 1)
    guards = [key async for key in client.scan_iter(f"{run_keys.prefix}*:{LANE}:*")]
    assert [key.decode() for key in guards] == [run_keys.seen(LANE, "g1")]
    await client.aclose()


async def test_blocking_longer_than_the_socket_timeout_is_no_failure(
    redis_url: str, run_keys: RunKeys
) -> None:
    client = connect(redis_url)
    queue = RedisQueue(client, run_keys)
    assert await queue.claim(LANE, "a", lease_s=LONG_S, block_s=6) is None
    await client.aclose()


@pytest.mark.parametrize("command", ["sgg-rl serve redis", "docker compose up -d"])
async def test_an_absent_redis_is_unavailable_and_the_message_helps(
    run_keys: RunKeys, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command.startswith("docker"):
        monkeypatch.setenv("SGG_START_COMMAND", command)
    port = free_port()
    client = connect(f"redis://user:secret@127.0.0.1:{port}/0")
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}.*{command}") as caught:
        await RedisQueue(client, run_keys).length(LANE)
    assert "secret" not in caught.value.message
    await client.aclose()
