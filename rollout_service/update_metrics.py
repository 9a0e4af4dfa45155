"""What Prometheus learns of weight updates."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

Phase = Literal["stage", "commit"]


class UpdateMetrics:
    """How long the phases of updates take, and how often one fails.

    Example: `rollout_weight_update_seconds_count{phase="commit"} 80.0`
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "rollout_weight_update_seconds",
            "Time of a phase: stage beside sampling, commit while it waits",
            ["phase"],
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150),
            registry=registry,
        )
        self._failures = Counter(
            "rollout_weight_update_failures", "Phases that failed", ["phase"], registry=registry
        )
        for phase in get_args(Phase):
            self._seconds.labels(phase)
            self._failures.labels(phase)

    @contextmanager
    def timed(self, phase: Phase) -> Iterator[None]:
        """Time what is done inside; what raises is a failure."""
        started_at = time.perf_counter()
        try:
            yield
        except BaseException:
            self._failures.labels(phase).inc()
            raise
        self._seconds.labels(phase).observe(time.perf_counter() - started_at)
