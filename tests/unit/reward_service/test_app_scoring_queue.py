"""The queue before a scoring thread: bounded, and left by clients that go."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Message

from reward_service.service.request_handler import Answer, Answerer
from reward_service.service.scoring_queue import MAX_WAITING, SMALL_BYTES, ScoringQueue
from reward_service.service.workers import Workers
from reward_service.similarity.registry import Similarities
from services.errors import SettingsError, UnavailableError


class GatedAnswerer(Answerer):
    """Waits for its gate, and remembers what it worked on."""

    def __init__(self) -> None:
        super().__init__(Similarities())
        self.gate = threading.Event()
        self.started = threading.Event()
        self.bodies: list[bytes] = []

    def answer(self, body: bytes) -> Answer:
        self.started.set()
        self.gate.wait(60)
        self.bodies.append(body)
        return make_answer(body)


def make_answer(content: bytes) -> Answer:
    return Answer(
        content=content,
        rubric="balanced",
        num_groups=1,
        num_failed_groups=1,
        statuses={"ok": 3},
        scoring_s=0.1,
    )


@asynccontextmanager
async def running(
    make: Callable[[], Answerer],
) -> AsyncIterator[tuple[ScoringQueue, CollectorRegistry]]:
    registry = CollectorRegistry()
    workers = Workers(make, 1)
    await workers.start()
    yield ScoringQueue(workers, registry), registry
    await workers.stop()


async def stay() -> Message:
    """What a client that waits for its answer sends."""
    await asyncio.Event().wait()
    raise AssertionError


async def go() -> Message:
    return {"type": "http.disconnect"}


async def contents(queue: ScoringQueue, *bodies: bytes) -> list[bytes]:
    answers = await asyncio.gather(*(queue.answer(body, stay) for body in bodies))
    return [answer.content for answer in answers if answer]


async def test_more_than_may_wait_are_refused_and_the_others_served() -> None:
    answerer = GatedAnswerer()
    async with running(lambda: answerer) as (queue, registry):
        crowd = [asyncio.create_task(queue.answer(b"x", stay)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        assert registry.get_sample_value("reward_queue_depth") == MAX_WAITING
        with pytest.raises(UnavailableError, match=f"{MAX_WAITING} requests wait"):
            await queue.answer(b"one too many", stay)
        answerer.gate.set()
        assert len(await asyncio.gather(*crowd)) == MAX_WAITING
        assert registry.get_sample_value("reward_queue_depth") == 0
        assert await contents(queue, b"later") == [b"later"]


async def test_who_leaves_the_queue_is_not_scored() -> None:
    answerer = GatedAnswerer()
    async with running(lambda: answerer) as (queue, registry):
        first = asyncio.create_task(queue.answer(b"first", stay))
        await asyncio.to_thread(answerer.started.wait, 60)
        assert await queue.answer(b"gone", go) is None
        assert registry.get_sample_value("reward_queue_depth") == 1
        await asyncio.sleep(0)  # the event loop takes it from the worker's queue in its next round
        answerer.gate.set()
        await first
        assert await contents(queue, b"last") == [b"last"]
    assert answerer.bodies == [b"first", b"last"]


async def test_small_requests_do_not_wait_behind_large_ones() -> None:
    slow, at_once = GatedAnswerer(), GatedAnswerer()
    at_once.gate.set()
    workers, registry = Workers(lambda: slow, 1), CollectorRegistry()
    await workers.start()
    queue = ScoringQueue(workers, registry, at_once)
    large = asyncio.create_task(queue.answer(b"x" * (SMALL_BYTES + 1), stay))
    await asyncio.to_thread(slow.started.wait, 60)
    small = b"x" * SMALL_BYTES
    assert await contents(queue, small) == [small]
    assert not large.done()
    slow.gate.set()
    await large
    await workers.stop()
    assert (at_once.bodies, len(slow.bodies)) == ([small], 1)
    assert registry.get_sample_value("reward_completions_total", {"status": "ok"}) == 6


async def test_answers_are_counted() -> None:
    answerer = GatedAnswerer()
    answerer.gate.set()
    async with running(lambda: answerer) as (queue, registry):
        await contents(queue, b"", b"")
    found = registry.get_sample_value
    assert found("reward_completions_total", {"status": "ok"}) == 6
    assert found("reward_group_errors_total") == 2
    assert found("reward_scoring_seconds_count") == 2
    assert found("reward_batch_completions_sum") == 6


def fail_to_start() -> Answerer:
    raise SettingsError("no such folder")


async def test_workers_that_cannot_start_are_not_waited_for() -> None:
    with pytest.raises(UnavailableError, match="the service's log"):
        await Workers(fail_to_start, 1).start()
