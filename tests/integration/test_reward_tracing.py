"""Spans of a real service process, as a real OTLP receiver gets them."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from services.http.clients.reward import RewardClient
from services.schemas.rewards import RewardRequest
from services.telemetry import trace_headers
from tests.otlp import attributes, collecting
from tests.reward_process import REQUEST, TOKEN, running


@pytest.mark.parametrize("workers", [1, 2])
async def test_spans_join_the_callers_trace(tmp_path: Path, workers: int) -> None:
    tracer = TracerProvider().get_tracer("test")
    with collecting() as collector:
        settings = {"telemetry": {"otlp_endpoint": collector.url}, "reward": {"workers": workers}}
        with running(tmp_path / "log", **settings) as (url, process):
            async with RewardClient(url, token=TOKEN) as client:
                with tracer.start_as_current_span("train") as caller:
                    await client.score(RewardRequest.model_validate(REQUEST))
            process.terminate()  # what was not sent yet is sent now
            assert process.wait() == 0
        spans = collector.spans("sgg-rl reward", 2)  # health checks have none
    request, score = spans["POST /v1/rewards"], spans["score"]
    context = caller.get_span_context()
    assert request.trace_id == score.trace_id == context.trace_id.to_bytes(16, "big")
    assert request.parent_span_id == context.span_id.to_bytes(8, "big")
    assert score.parent_span_id == request.span_id
    found = attributes(score)
    assert (found["rubric"], found["num_groups"], found["num_completions"]) == ("balanced", 1, 2)
    assert found["scoring_s"] > 0


def test_a_collector_that_is_away_costs_nothing_but_spans(tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    settings = {"telemetry": {"otlp_endpoint": "http://127.0.0.1:9"}}
    with running(tmp_path / "log", **settings) as (url, process):
        answer = httpx.post(f"{url}/v1/rewards", json=REQUEST, headers=headers, trust_env=False)
        assert answer.status_code == 200
        process.terminate()
        assert process.wait() == 0


def test_without_an_endpoint_opentelemetry_is_not_imported() -> None:
    program = """
import sys
from reward_service.service.app import build_app
from services.settings import Settings
from services.telemetry import trace_headers
build_app(Settings.model_validate({"model": {"path": "x"}, "data": {"train": "x"}}))
assert trace_headers() == {}
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(found.stdout) == []


def test_outside_of_a_span_no_traceparent_is_sent() -> None:
    assert trace_headers() == {}
    with trace.use_span(TracerProvider().get_tracer("test").start_span("x")):
        assert set(trace_headers()) == {"traceparent"}
