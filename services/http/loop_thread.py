"""An event loop beside the training loop."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from services.waiting import ended

T = TypeVar("T")


class LoopThread:
    """Runs coroutines on a thread of its own, so that they go on while a step trains.

    Example: `LoopThread("publisher").run(registry.servers())`
    """

    def __init__(self, name: str) -> None:
        """Args: name: The thread's, which starts with the first coroutine."""
        self._loop = asyncio.new_event_loop()
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether `run` or `start` was called, and `close` was not."""
        return self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine to end there; its exception is raised here."""
        return self.start(work).result()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Have a coroutine run there, and go on here."""
        with self._starting:  # two threads may have the first work
            if not self.is_running:
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """End the coroutines there, and stop; waiting for them raises `CancelledError`."""
        if self.is_running:
            self.run(_others_ended())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)
            if not self.is_running:
                self._loop.close()


async def _others_ended() -> None:
    """End all other tasks of this loop."""
    await ended(*(asyncio.all_tasks() - {asyncio.current_task()}))
