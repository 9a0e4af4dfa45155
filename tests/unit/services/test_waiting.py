import asyncio

import pytest

from services.errors import ConflictError, UnavailableError, WaitTimeoutError
from services.waiting import racing, until_available


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
