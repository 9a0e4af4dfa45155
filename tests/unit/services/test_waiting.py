import asyncio
import gc
import math
from itertools import islice

import pytest

from services.errors import ConflictError, EngineError, UnavailableError, WaitTimeoutError
from services.waiting import Patience, WaitNotice, ended, growing_pauses, racing, until_available


async def test_repeats_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.waiting.PAUSE_S", 0.0)
    attempts = []

    async def work() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise UnavailableError("away")
        return 7

    assert await until_available(work, timeout_s=5) == 7
    assert len(attempts) == 3


async def test_gives_up_with_the_service_s_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.waiting.PAUSE_S", 0.01)

    async def work() -> int:
        raise UnavailableError("Redis is away")

    with pytest.raises(WaitTimeoutError, match="Redis is away"):
        await until_available(work, timeout_s=0.05)


async def test_patience_begins_anew_after_a_success(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("services.waiting.PAUSE_S", 0.0)
    patience = Patience(0.0, "nothing was scored for")
    for error in (UnavailableError("slow"), EngineError("full"), UnavailableError("full")):
        await patience.endure(error)  # the second one in a row would be too late
        assert patience.trouble == error.message
        patience.succeeded()
        assert patience.trouble == ""
    assert caplog.messages == ["slow; trying again", "full; trying again"]
    await patience.endure(UnavailableError("full"))
    with pytest.raises(WaitTimeoutError, match="nothing was scored for 0 s: gone"):
        await patience.endure(UnavailableError("gone"))


def test_pauses_grow_to_the_longest() -> None:
    assert list(islice(growing_pauses(0.5, 3.0), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]


async def test_other_errors_are_not_waited_for() -> None:
    async def work() -> int:
        raise ConflictError("fenced off")

    with pytest.raises(ConflictError):
        await until_available(work, timeout_s=60)


async def test_of_a_race_the_others_are_ended_when_it_is_left() -> None:
    came: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            came.append("ended")

    async def quick() -> int:
        await asyncio.sleep(0)
        return 7

    async with racing(slow(), quick()) as (waiting, done):
        assert (waiting.done(), done.result()) == (False, 7)
        assert came == []
    assert waiting.cancelled()
    assert came == ["ended"]


def test_a_wait_is_said_after_5_s_and_then_every_30_s() -> None:
    said: list[str] = []
    notice = WaitNotice(600.0, said.append)
    for second in range(41):
        notice.waited(float(second), "Redis at redis://h:1/0 does not answer")
    assert said == [
        "waiting 5 s of 600 s: Redis at redis://h:1/0 does not answer",
        "waiting 35 s of 600 s: Redis at redis://h:1/0 does not answer",
    ]
    for second in (0, 4, 5):  # another wait
        notice.waited(float(second), "again")
    assert said[2:] == ["waiting 5 s of 600 s: again"]


async def test_who_waits_for_a_service_says_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("services.waiting.PAUSE_S", 0.0)
    monkeypatch.setattr("services.waiting.WaitNotice.FIRST_S", 0.0)
    attempts = iter([1, 2])

    async def work() -> int:
        if next(attempts, None):
            raise UnavailableError("Redis is away")
        return 7

    assert await until_available(work, timeout_s=math.inf) == 7
    assert caplog.messages == ["Redis is away; trying again", "waiting 0 s: Redis is away"]


async def test_what_a_task_calls_back_is_called_once_it_has_ended() -> None:
    async def work() -> None:
        return None

    tasks = {asyncio.create_task(work()), asyncio.create_task(asyncio.sleep(60))}
    for task in tasks:
        task.add_done_callback(tasks.discard)
    while tasks:  # a task that is done, and has not called back yet, would go round for ever
        await ended(*tasks)


async def test_errors_of_what_was_ended_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise EngineError("too late")

    task = asyncio.create_task(work())
    await asyncio.wait({task})
    await ended(task)
    del task
    gc.collect()
    assert not caplog.records
