"""Spans of a real rollout server's process, as a real OTLP receiver gets them."""

from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider

from services.host.ports import free_port
from services.http.clients.rollout import RolloutClient
from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.rollouts import RolloutRequest
from services.settings import Settings, dump_settings
from tests.otlp import attributes, collecting
from tests.processes import sgg_process, wait_ready

REQUEST = RolloutRequest(
    messages=[ChatMessage(role="user", content=[TextPart(text="What is there?")])],
    sampling=Sampling(n=3),
)


async def test_a_groups_span_joins_the_callers_trace(tmp_path: Path, redis_url: str) -> None:
    tracer = TracerProvider().get_tracer("test")
    config = tmp_path / "run.toml"
    with collecting() as collector:
        settings = Settings.model_validate(
            {
                "run": {"name": "traced", "root": str(tmp_path)},
                "model": {"path": "no-such-model", "box_space": "relative_1000"},
                "data": {"train": "unused"},
                "redis": {"url": redis_url},
                "rollout": {"url": f"http://127.0.0.1:{free_port()}", "engine": "fake"},
                "telemetry": {"otlp_endpoint": collector.url},
            }
        )
        config.write_text(dump_settings(settings))
        log = tmp_path / "log"
        with sgg_process(log, "serve", "rollout", "--config", str(config)) as process:
            wait_ready(settings.rollout.url, process, log)
            async with RolloutClient(settings.rollout.url) as client:
                with tracer.start_as_current_span("caller") as caller:
                    answer = await client.rollouts(REQUEST)
            process.terminate()  # what was not sent yet is sent now
            assert process.wait() == 0
        spans = collector.spans("sgg-rl rollout", 2)  # health checks have none
    request, sample = spans["POST /v1/rollouts"], spans["sample"]
    context = caller.get_span_context()
    assert request.trace_id == sample.trace_id == context.trace_id.to_bytes(16, "big")
    assert request.parent_span_id == context.span_id.to_bytes(8, "big")
    assert sample.parent_span_id == request.span_id
    found = attributes(sample)
    num_tokens = sum(len(c.token_ids) for c in answer.completions)
    assert (found["num_completions"], found["num_tokens"]) == (3, num_tokens)
    assert (found["policy_version"], found["request_id"][:5]) == (0, "http-")
