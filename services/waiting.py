"""Waiting for what may come back, and for what is to end."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from services.errors import UnavailableError, WaitTimeoutError

logger = logging.getLogger(__name__)
T = TypeVar("T")

PAUSE_S = 1.0


async def until_available(work: Callable[[], Awaitable[T]], *, timeout_s: float) -> T:
    """Repeat idempotent work while a service is away.

    Raises:
        WaitTimeoutError: It was away for `timeout_s` seconds; the message is the service's.
    """
    since: float | None = None  # the first failure: before it, this process may have stood still
    said = ""
    while True:
        try:
            return await work()
        except UnavailableError as error:
            since = since or time.monotonic()
            if time.monotonic() - since > timeout_s:
                raise WaitTimeoutError(
                    f"gave up after {timeout_s:.0f} s: {error.message}"
                ) from error
            if error.message != said:
                logger.warning("%s; trying again", error.message)
            said = error.message
            await asyncio.sleep(PAUSE_S)


async def ended(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks until each has ended.

    More than once: a cancellation that meets a timeout of a library can be lost in it.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=PAUSE_S)
    await asyncio.gather(*tasks, return_exceptions=True)  # whose errors nobody asks for any more
