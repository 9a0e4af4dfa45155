"""What the process tells Prometheus about itself."""

import asyncio
import time

from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest

from rollout_service.http.process_metrics import EngineMetrics, LoopLag


async def test_a_held_event_loop_shows() -> None:
    registry = CollectorRegistry()
    watching = asyncio.create_task(LoopLag(registry).watch())

    def late() -> float:
        name = "rollout_event_loop_lag_seconds"
        total = registry.get_sample_value(f"{name}_count") or 0.0
        return total - (registry.get_sample_value(f"{name}_bucket", {"le": "0.1"}) or 0.0)

    await asyncio.sleep(0)
    while late() == 0:
        time.sleep(0.2)  # noqa: ASYNC251 - holds the loop, which is what is measured
        await asyncio.sleep(0.001)
    watching.cancel()
    assert late() >= 1


def test_only_vllm_s_metrics_are_passed_on() -> None:
    counter = Counter("vllm:test_things", "For this test", ["model_name"])
    try:
        counter.labels("m").inc(2)
        registry = CollectorRegistry()
        registry.register(EngineMetrics())
        text = generate_latest(registry).decode()
    finally:
        REGISTRY.unregister(counter)
    assert 'vllm:test_things_total{model_name="m"} 2.0' in text
    assert "python_info" not in text
