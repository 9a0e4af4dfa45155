"""The parts of a step: how long each takes, which one this rank is in, and their spans."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from services.telemetry import OpenSpan, Tracing
from trainer.ranks.watch import RankWatch


class PhaseClock:
    """Seconds of each phase of the present step.

    Args:
        watch: Is told of each phase.
        step: The first one.
        tracing: Where a span for the step and each of its phases goes.
    """

    def __init__(self, watch: RankWatch, step: int, tracing: Tracing) -> None:
        self._watch = watch
        self._tracing = tracing
        self._span: OpenSpan | None = None
        self.begin(step)

    def begin(self, step: int) -> None:
        """A step begins, and the one before it is done."""
        self.finish()
        self._step = step
        self.seconds: dict[str, float] = {}
        self._span = self._tracing.begin("step", step=step)

    @property
    def total_s(self) -> float:
        """All phases so far."""
        return sum(self.seconds.values())

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block; all ranks go through the same ones in the same order.

        A phase that comes again, since a batch was skipped or a checkpoint waits for the version
        that is under way, adds to its seconds.
        """
        self._watch.enter(phase, self._step)
        start = time.perf_counter()
        with self._tracing.span(phase, parent=self._span.traceparent if self._span else None):
            yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def finish(self) -> None:
        """No step begins any more."""
        if self._span is not None:
            self._span.end()
