"""The parts of a step: how long each takes, and which one this rank is in."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.watch import RankWatch


class PhaseClock:
    """Seconds of each phase of one step.

    Args:
        watch: Is told of each phase.
        step: The phases' step.
    """

    def __init__(self, watch: RankWatch, step: int) -> None:
        self._watch = watch
        self._step = step
        self.seconds: dict[str, float] = {}

    @property
    def total_s(self) -> float:
        """Of all phases so far."""
        return sum(self.seconds.values())

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block; all ranks go through the same ones in the same order."""
        self._watch.enter(phase, self._step)
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start
