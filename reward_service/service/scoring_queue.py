"""Who waits for scoring.

| waits | for | freed by | bound |
|---|---|---|---|
| part of a body | the rest of it | its client | `HELD_LIMIT_BYTES` of all requests, else 503 |
| a whole body | a worker | the end of those before it | `MAX_WAITING` a worker, else 503 |

The event loop moves bytes, and answers `/healthz`, `/readyz` and `/metrics` however long the queue
is. With one worker it also answers requests of a few completions itself: that takes a millisecond,
and handing them to a thread and back takes as long.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Receive

from reward_service.service.request_handler import Answer, Answerer
from reward_service.service.workers import Workers
from services.errors import UnavailableError
from services.waiting import racing

MAX_WAITING = 64
"""Requests in the queue and in work, for each worker: seconds of scoring at the batch sizes of
training."""
BODY_LIMIT_BYTES = 32_000_000
"""Longest body of a request: 16,384 completions of 2 KB."""
HELD_LIMIT_BYTES = 4 * BODY_LIMIT_BYTES
SMALL_BYTES = 16_384
"""A request up to this size takes a millisecond, and 20 if it was made to take long."""


class ScoringQueue:
    """The bounded queue of requests before the workers, and what is counted of them."""

    def __init__(
        self, workers: Workers, registry: CollectorRegistry, at_once: Answerer | None = None
    ) -> None:
        """Nobody waits yet.

        Args:
            workers: Started by the caller.
            registry: For the metrics.
            at_once: Answers small requests on the event loop; it must never load a file.
        """
        self._workers = workers
        self._at_once = at_once
        self._num_waiting = 0
        depth = Gauge(
            "reward_queue_depth", "Requests waiting for scoring, or in it", registry=registry
        )
        depth.set_function(lambda: self._num_waiting)
        self._completions = Counter(
            "reward_completions", "Scored completions", ["status"], registry=registry
        )
        self._group_errors = Counter(
            "reward_group_errors", "Groups answered with an error", registry=registry
        )
        self._seconds = Histogram(
            "reward_scoring_seconds",
            "From a request's bytes to its answer's, without waiting",
            registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self._batch = Histogram(
            "reward_batch_completions",
            "Completions of a request",
            registry=registry,
            buckets=(1, 8, 32, 128, 512, 2048, 8192),
        )

    async def answer(self, body: bytes, receive: Receive) -> Answer | None:
        """The answer to a request; None when its client went away.

        Args:
            body: The request's.
            receive: The request's, whose body has been read. A request whose client goes away
                while it waits is dropped.

        Raises:
            UnavailableError: `MAX_WAITING` requests a worker are here already.
            SggError: As `Answerer.answer`.
        """
        if self._at_once is not None and len(body) <= SMALL_BYTES:
            answer: Answer | None = self._at_once.answer(body)
        else:
            answer = await self._in_turn(body, receive)
        if answer is not None:
            self._report(answer)
        return answer

    async def _in_turn(self, body: bytes, receive: Receive) -> Answer | None:
        if self._num_waiting >= MAX_WAITING * self._workers.num_workers:
            raise UnavailableError(
                f"{self._num_waiting} requests wait for scoring; try again later, or run the "
                "service with more workers"
            )
        self._num_waiting += 1
        try:
            async with racing(self._workers.answer(body), _client_goes(receive)) as (answer, _):
                return answer.result() if answer.done() else None
        finally:
            self._num_waiting -= 1

    def _report(self, answer: Answer) -> None:
        for status, count in answer.statuses.items():
            self._completions.labels(status).inc(count)
        self._group_errors.inc(answer.num_failed_groups)
        self._seconds.observe(answer.scoring_s)
        self._batch.observe(sum(answer.statuses.values()))


async def _client_goes(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
