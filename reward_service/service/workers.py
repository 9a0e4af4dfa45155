"""Where scoring happens: a thread of this process, or processes of their own.

One thread: scoring is Python and small arrays, so that a second one would only take turns with it.
More cores are used by processes, which get whole requests one by one: however few connections there
are, no worker idles while requests wait. The service's own process then only moves bytes.
"""

import asyncio
import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from typing import TypeVar

from reward_service.service.answering import Answer, Answerer
from services.errors import UnavailableError
from services.host.orphans import end_with_parent
from services.telemetry import setup_logging

logger = logging.getLogger(__name__)

T = TypeVar("T")

SILENT_S = 60.0
"""Workers that have work and answer nothing for this long are taken for hung."""
_worker = threading.local()
"""Holds the `answerer` of a scoring thread, or of a scoring process's main thread."""


class Workers:
    """`num_workers` that answer requests, each one at a time."""

    def __init__(self, make_answerer: Callable[[], Answerer], num_workers: int) -> None:
        """Starts nothing yet.

        Args:
            make_answerer: Called in every worker; has to be picklable where there are several.
            num_workers: 1 is a thread of this process; more are processes beside it.
        """
        self.num_workers = num_workers
        self._make_answerer = make_answerer
        self._executor = self._new_executor()
        self._up = True
        """Whether the workers were alive when they were last asked."""
        self._probe: Future[int] | None = None
        self._asked_at = self._answered_at = time.monotonic()

    async def start(self) -> None:
        """Wait until all workers are up.

        Raises:
            UnavailableError: One ended while it started; the log says why.
        """
        found: set[int] = set()
        while len(found) < self.num_workers:  # the first one up may answer for the others
            found |= set(
                await asyncio.gather(*(self._run(_worker_id) for _ in range(self.num_workers)))
            )

    async def answer(self, body: bytes) -> Answer:
        """`Answerer.answer` in a worker. Cancelling drops it unless it is being worked on.

        Raises:
            UnavailableError: Workers died of it, or beside it, twice.
            SggError: As `Answerer.answer`.
        """
        return await self._run(_answer, body)

    def why_not_ready(self) -> str | None:
        """Why no worker can score now, or None. Each call asks them again, and waits for nothing.

        Dead processes are replaced here too, so that the next request finds a worker.
        """
        if self._probe is None or self._probe.done():
            self._up = self._probe is None or self._probe.exception() is None
            self._probe, self._asked_at = self._ask(), time.monotonic()
        if not self._up:
            return "scoring processes died and are being started again; the log says more"
        silent_s = time.monotonic() - max(self._answered_at, self._asked_at)
        if silent_s > SILENT_S:
            return f"no scoring worker has answered for {silent_s:.0f} s: start the service again"
        return None

    async def stop(self) -> None:
        """End the workers; what still waits is dropped."""
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        """In a worker. A dead one is replaced, and what it or its neighbours had is done again."""
        for _ in range(2):
            executor = self._executor
            try:
                answer = await asyncio.get_running_loop().run_in_executor(executor, function, *args)
            except BrokenExecutor as error:
                self._replace(executor, error)
            else:
                self._answered_at = time.monotonic()
                return answer
        raise UnavailableError("scoring processes die; try again later, and see the service's log")

    def _ask(self) -> Future[int]:
        executor = self._executor
        try:
            return executor.submit(os.getpid)
        except BrokenExecutor as error:
            self._up = False
            self._replace(executor, error)
            return self._executor.submit(os.getpid)

    def _replace(self, executor: Executor, error: BrokenExecutor) -> None:
        logger.warning("a scoring process died: %s", error)
        if self._executor is executor:  # the first to notice
            self._executor = self._new_executor()

    def _new_executor(self) -> Executor:
        if self.num_workers == 1:
            return ThreadPoolExecutor(
                1, "scoring", initializer=_start_thread, initargs=(self._make_answerer,)
            )
        return ProcessPoolExecutor(
            self.num_workers,
            multiprocessing.get_context("spawn"),  # a fork would copy locks that threads hold
            initializer=_start_process,
            initargs=(self._make_answerer,),
        )


def settle() -> None:
    """Make memory cheap for a process that has started and will score for long.

    What start-up made leaves the garbage collector's sight: a full collection would look through
    all of it, and hold up whatever is scored. And glibc keeps freed memory instead of handing it
    back to the system, from where each batch's arrays would come again page by page.
    """
    gc.collect()
    gc.freeze()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # only glibc has it
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def _start_thread(make_answerer: Callable[[], Answerer]) -> None:
    _worker.answerer = make_answerer()


def _start_process(make_answerer: Callable[[], Answerer]) -> None:
    setup_logging(f"reward[{os.getpid()}]")
    # Ctrl+C reaches every process of a terminal; the service drains first, then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _start_thread(make_answerer)
    settle()


def _worker_id() -> int:
    time.sleep(0.01)  # long enough for another worker that is up to take the next one
    return os.getpid() if multiprocessing.parent_process() else threading.get_ident()


def _answer(body: bytes) -> Answer:
    answer: Answer = _worker.answerer.answer(body)
    return answer
