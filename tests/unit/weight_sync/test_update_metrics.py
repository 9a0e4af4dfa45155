"""What is counted of weight updates."""

import pytest
from prometheus_client import CollectorRegistry

from services.errors import EngineError
from weight_sync.updater import UpdateMetrics


def test_a_phase_is_timed_or_has_failed() -> None:
    registry = CollectorRegistry()
    metrics = UpdateMetrics(registry)

    def value(name: str, phase: str) -> float | None:
        return registry.get_sample_value(f"rollout_weight_update_{name}", {"phase": phase})

    assert value("failures_total", "stage") == 0  # there from the start, so that it can rise
    with metrics.timed("commit"):
        pass
    with pytest.raises(EngineError), metrics.timed("commit"):
        raise EngineError("out of memory")
    assert value("seconds_count", "commit") == 1
    assert value("failures_total", "commit") == 1
    assert value("failures_total", "stage") == 0
