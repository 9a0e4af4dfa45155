"""A clock and what happens on it: a heap of calls, and processes that wait.

As simpy has it, in the few lines that are needed here and at the same pace, so that no package is
asked for (`benchmarks/plan_simpy.py`).
"""

import heapq
from collections.abc import Callable, Generator
from itertools import count

Process = Generator["float | Signal", None, None]
"""Yields seconds to sleep, or a signal to wait for."""


class Signal:
    """Happens once; who waits for it goes on then, who comes later at once."""

    def __init__(self) -> None:
        self.happened = False
        self._waiting: list[Callable[[], None]] = []

    def wait(self, call: Callable[[], None]) -> None:
        """Call when it happens."""
        if self.happened:
            call()
        else:
            self._waiting.append(call)

    def happen(self) -> None:
        """Let everybody go on."""
        self.happened = True
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()


class Clock:
    """Simulated time, in seconds from 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call later; calls of one moment come in the order in which they were asked for."""
        heapq.heappush(self._calls, (self.now + seconds, next(self._numbers), call))

    def run(self, process: Process) -> None:
        """Start a process now."""

        def go_on() -> None:
            for wait in process:
                if isinstance(wait, Signal):
                    wait.wait(go_on)
                else:
                    self.after(wait, go_on)
                return

        go_on()

    def go_until(self, end: Signal) -> None:
        """Let things happen until a signal does.

        Raises:
            RuntimeError: Nothing is left to happen: a bug of the model.
        """
        while not end.happened:
            if not self._calls:
                raise RuntimeError("the simulated loop waits for something that never comes")
            self.now, _, call = heapq.heappop(self._calls)
            call()


class Turns:
    """Something that does one thing after the other: Redis, the collector, an upload's sender.

    Args:
        clock: Whose time it takes.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free_at = 0.0
        self.busy_s = 0.0

    def take(self, seconds: float) -> float:
        """Use it for so long; returns the seconds from now until that is done."""
        self._free_at = max(self._clock.now, self._free_at) + seconds
        self.busy_s += seconds
        return self._free_at - self._clock.now
