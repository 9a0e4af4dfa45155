"""Waiting for what may come back, and for what is to end."""

import asyncio
import errno
import logging
import math
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from services.errors import SggError, UnavailableError, WaitTimeoutError
from services.host.environment import start_command

logger = logging.getLogger(__name__)
T = TypeVar("T")

PAUSE_S = 1.0
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
"""What a full file system, and a full quota, answer."""


class WaitNotice:
    """Says of a wait how long it is and why: after 5 s, and then every 30 s.

    Example of a line: `waiting 35 s of 600 s: Redis at redis://127.0.0.1:6379/0 does not answer`
    """

    FIRST_S = 5.0
    EVERY_S = 30.0

    def __init__(self, limit_s: float, say: Callable[[str], object] | None = None) -> None:
        """Says nothing yet.

        Args:
            limit_s: Seconds after which nobody waits any longer; infinity where there is no end.
            say: Takes a line; this module's log when None.
        """
        self._limit = f" of {limit_s:.0f} s" if math.isfinite(limit_s) else ""
        self._say = say or (lambda line: logger.warning("%s", line))
        self._next_s = self.FIRST_S

    def waited(self, seconds: float, why: str) -> None:
        """Call it at each look at what is waited for.

        Args:
            seconds: Since the wait began. Fewer than at the last look are another wait.
            why: Who is waited for, and what is wrong there.
        """
        if seconds < self._next_s - self.EVERY_S:
            self._next_s = self.FIRST_S
        if seconds >= self._next_s:
            self._next_s = seconds + self.EVERY_S
            self._say(f"waiting {seconds:.0f} s{self._limit}: {why}")


async def until_available(
    work: Callable[[], Awaitable[T]],
    *,
    timeout_s: float,
    failed: Callable[[UnavailableError], None] = lambda _: None,
) -> T:
    """Repeat idempotent work while a service is away.

    Args:
        work: What is repeated.
        timeout_s: Longest time that the service may be away.
        failed: Called after each failure; what it raises ends the waiting.

    Raises:
        WaitTimeoutError: It was away for `timeout_s` seconds; the message is the service's.
    """
    patience: Patience | None = None
    while True:
        try:
            return await work()
        except UnavailableError as error:
            failed(error)
            patience = patience or Patience(timeout_s)
            await patience.endure(error)


class Patience:
    """Pauses after each failure of a service, until nothing else has come for too long.

    Args:
        timeout_s: Longest time.
        gave_up: What is said after it.
    """

    def __init__(self, timeout_s: float, gave_up: str = "gave up after") -> None:
        self._timeout_s = timeout_s
        self._gave_up = gave_up
        self._notice = WaitNotice(timeout_s)
        # Not the start: this process may have stood still before the first failure.
        self._since: float | None = None
        self._said = ""
        self.trouble = ""
        """The last failure, until a success."""

    def succeeded(self) -> None:
        """The next failure is the first one."""
        self._since, self.trouble = None, ""

    async def endure(self, error: SggError) -> None:
        """Log a failure, unless it is the last one again, and pause.

        Raises:
            WaitTimeoutError: There were only failures for `timeout_s`; it has this one's message.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
        failing_s = now - self._since
        if failing_s > self._timeout_s:
            raise WaitTimeoutError(f"{self._gave_up} {failing_s:.0f} s: {error.message}") from error
        if error.message != self._said:
            logger.warning("%s; trying again", error.message)
        self.trouble = self._said = error.message
        self._notice.waited(failing_s, error.message)
        await asyncio.sleep(PAUSE_S)


def growing_pauses(first_s: float, longest_s: float) -> Iterator[float]:
    """Seconds to wait between attempts: each time twice as many, up to the longest."""
    while True:
        yield first_s
        first_s = min(2 * first_s, longest_s)


async def ended(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel tasks until each has ended.

    More than once: a cancellation that meets a timeout of a library can be lost in it. What calls
    back when a task ends has been called.
    """
    running = {task for task in tasks if not task.done()}
    if not running:
        await asyncio.sleep(0)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=PAUSE_S)
    for task in tasks:  # their errors count no more, and nobody says that they were not looked at
        if not task.cancelled():
            task.exception()


async def in_thread(work: Callable[[], T], stop: Callable[[], object]) -> T:
    """Run what blocks in a thread, and see it end there whatever happens here.

    Args:
        work: What blocks.
        stop: Called where this is cancelled: has the work end soon.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop()
        await asyncio.gather(running, return_exceptions=True)
        raise


@asynccontextmanager
async def racing(*works: Awaitable[Any]) -> AsyncIterator[list["asyncio.Future[Any]"]]:
    """The works as tasks, in the given order, once one of them has ended.

    All others are cancelled, and have ended, when the block is left.

    Example: `async with racing(sample(), gone.wait()) as (sampled, _): return sampled.done()`
    """
    running: list[asyncio.Future[Any]] = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        yield running
    finally:
        await ended(*running)


class RoomWait:
    """Repeats writes that a full disk refuses, until there is room. For threads, not event loops.

    Args:
        folder: What is written to; the log names it.
        timeout_s: Longest wait.
        check: Called before each attempt, for much may have changed in a wait; what it raises ends
            it.
        stop_asked: Whether the run is to stop, so that nobody waits any longer.
    """

    def __init__(
        self,
        folder: Path,
        timeout_s: float,
        check: Callable[[], object] = lambda: None,
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._check = check
        self._stop_asked = stop_asked
        self._notice = WaitNotice(timeout_s)
        self._lock = threading.Lock()
        self._full_since: float | None = None

    def write(self, attempt: Callable[[], T]) -> T:
        """The result of a write that may be tried again after it has failed.

        Raises:
            WaitTimeoutError: There was no room for `timeout_s`, or until the run is to stop.
            OSError: It failed for another reason.
        """
        while True:
            self._check()
            try:
                result = attempt()
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._pause(error)
            else:
                with self._lock:
                    self._full_since = None
                return result

    def _pause(self, error: OSError) -> None:
        now = time.monotonic()
        with self._lock:  # of several threads one says it
            if self._full_since is None:
                self._full_since = now
                logger.warning(
                    "%s has no room (%s, %.1f MiB free): waiting up to %.0f s for some; remove "
                    "old runs or checkpoints, or make it larger",
                    self._folder,
                    error.strerror,
                    self._free() / 2**20,
                    self._timeout_s,
                )
            full_s = now - self._full_since
            self._notice.waited(full_s, f"{self._folder} has no room ({error.strerror})")
        if full_s > self._timeout_s or self._stop_asked():
            raise WaitTimeoutError(
                f"{self._folder} had no room for {full_s:.0f} s ({error.strerror}): make room "
                f"there, and go on with `{start_command('sgg-rl train --resume')}`"
            ) from error
        time.sleep(PAUSE_S)

    def _free(self) -> int:
        """Free bytes, for this user."""
        there = (folder for folder in (self._folder, *self._folder.parents) if folder.exists())
        return shutil.disk_usage(next(there)).free
