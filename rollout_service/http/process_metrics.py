"""What Prometheus learns of the process itself: how late its event loop is, and vLLM's metrics."""

import asyncio
from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_TICK_S = 0.02
_ENGINE_PREFIX = "vllm:"


class LoopLag:
    """Times a task that only sleeps: it is late by as long as others held the event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "rollout_event_loop_lag_seconds",
            "Time that a task ready to run had to wait",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=registry,
        )

    async def watch(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            woken_at = loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._lag.observe(max(0.0, loop.time() - woken_at))


class EngineMetrics(Collector):
    """Passes on what vLLM writes into the process's default registry, and nothing else of it."""

    def collect(self) -> Iterator[Metric]:
        """Metrics of now; none before the engine has started."""
        for metric in REGISTRY.collect():
            if metric.name.startswith(_ENGINE_PREFIX):
                yield metric
