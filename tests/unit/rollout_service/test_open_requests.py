"""Places are limited and come back; a client that goes away ends its work."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from rollout_service.http.open_requests import OpenRequests, while_connected
from services.errors import ClientGoneError, UnavailableError


def request(left: asyncio.Event) -> Request:
    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_places_are_limited_and_come_back() -> None:
    open_requests = OpenRequests(most=2)
    with open_requests.place():
        with (
            open_requests.place(),
            pytest.raises(UnavailableError, match="2 requests"),
            open_requests.place(),
        ):
            pass
        with pytest.raises(ValueError, match="mine"), open_requests.place():
            raise ValueError("mine")
        with open_requests.place():
            pass


def test_several_places_are_taken_together_or_not_at_all() -> None:
    open_requests = OpenRequests(most=3)
    with open_requests.place(2):
        with pytest.raises(UnavailableError, match="2 requests"), open_requests.place(2):
            pass
        with open_requests.place():
            pass
    with open_requests.place(3):
        pass


async def test_work_is_cancelled_when_the_client_goes_away() -> None:
    left, started, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(while_connected(request(left), work()))
    await started.wait()
    left.set()
    with pytest.raises(ClientGoneError, match="left"):
        await waiting
    assert ended.is_set()


async def test_an_answer_or_an_error_comes_through() -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    assert await while_connected(request(asyncio.Event()), add(1, 2)) == 3

    async def fail() -> int:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await while_connected(request(asyncio.Event()), fail())
