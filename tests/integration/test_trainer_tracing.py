"""A group's trace over three processes: trainer, rollout server (fake engine), reward service."""

from collections import defaultdict
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from services.host.ports import free_port
from services.redis.keys import RunKeys
from services.run_folder.records import read_rollouts
from services.settings import Settings, dump_settings
from services.telemetry import Tracing
from tests.otlp import Collector as Receiver
from tests.otlp import attributes, collecting
from tests.processes import sgg_process, wait_ready
from trainer.collection.collector import Collector
from trainer.collection.cursor import Cursor
from trainer.collection.prompts import PromptSource
from trainer.ranks.watch import RankWatch, watched
from trainer.records.phases import PhaseClock
from trainer.records.rollout_files import RolloutFiles
from trainer.records.tracing import SERVICE
from trainer.types import StepBatch

GROUPS = 2


def lay_out(folder: Path, keys: RunKeys, redis_url: str, otlp: str) -> Settings:
    make_toy(folder / "toy", num_train=8, num_heldout=1)
    return Settings.model_validate(
        {
            "run": {"name": keys.prefix.split(":")[1], "root": str(folder)},
            "model": {"path": "no-such-model", "box_space": "relative_1000"},
            "data": {"train": str(folder / "toy/train.parquet"), "template": "toy"},
            "redis": {"url": redis_url},
            "reward": {"url": f"http://127.0.0.1:{free_port()}"},
            "rollout": {"url": f"http://127.0.0.1:{free_port()}", "engine": "fake"},
            "trainer": {"groups_per_step": GROUPS, "group_size": 2, "max_policy_lag": 0},
            "telemetry": {"otlp_endpoint": otlp},
        }
    )


def take_one_batch(settings: Settings, keys: RunKeys) -> StepBatch:
    dataset = open_dataset(settings.data.train)
    prompts = PromptSource(settings, dataset, [7], incarnation=1)
    collector = Collector(settings, prompts, Cursor(None))
    collector.start(0)
    try:
        return collector.take(0)
    finally:
        collector.close()


def received(receiver: Receiver) -> dict[str, list[tuple[str, Span]]]:
    """All spans by their trace: service and span."""
    found = defaultdict(list)
    while not receiver.received.empty():
        service, span = receiver.received.get()
        found[span.trace_id.hex()].append((service, span))
    return found


def test_a_groups_trace_goes_through_all_processes(
    tmp_path: Path, run_keys: RunKeys, redis_url: str
) -> None:
    with collecting() as receiver:
        settings = lay_out(tmp_path, run_keys, redis_url, receiver.url)
        config, log = tmp_path / "run.toml", tmp_path / "log"
        config.write_text(dump_settings(settings))
        with (
            sgg_process(log, "serve", "reward", "--config", str(config)) as reward,
            sgg_process(log, "serve", "rollout", "--config", str(config)) as rollout,
        ):
            wait_ready(settings.reward.url, reward, log)
            wait_ready(settings.rollout.url, rollout, log)
            batch = take_one_batch(settings, run_keys)
            for process in (reward, rollout):  # what was not sent yet is sent now
                process.terminate()
                assert process.wait(60) == 0
        traces = received(receiver)
    files = RolloutFiles(tmp_path / "rollouts", rank=0, keep=0)
    files.write(0, batch.groups, [[-0.1] for _ in range(2 * GROUPS)])
    files.close()
    scored = set()
    for record in read_rollouts(tmp_path, 0):
        assert record.trace_id is not None
        spans = traces[record.trace_id]
        (root,) = [s for service, s in spans if (service, s.name) == (SERVICE, "group")]
        found = attributes(root)
        assert found["group_id"] == record.rollout.group_id
        assert found["outcome"] == "trained"
        (sample,) = [s for service, s in spans if service == "sgg-rl rollout"]
        assert (sample.name, sample.parent_span_id) == ("sample", root.span_id)
        scored |= {s.span_id for _, s in spans if s.name == "score groups"}
        scored |= {
            span.span_id
            for trace in traces.values()
            for _, span in trace
            if span.name == "score groups"
            and any(link.trace_id == root.trace_id for link in span.links)
        }
        assert scored
    posts = [
        span
        for trace in traces.values()
        for service, span in trace
        if service == "sgg-rl reward" and span.name.startswith("POST")
    ]
    assert {span.parent_span_id for span in posts} == scored


def test_a_step_has_a_span_for_each_phase(tmp_path: Path) -> None:
    with collecting() as receiver:
        tracing = Tracing(SERVICE, receiver.url)
        with watched(RankWatch(tmp_path, rank=0, size=1, limit_s=60)) as watch:
            clock = PhaseClock(watch, 3, tracing)
            for phase in ("wait", "train"):
                with clock(phase):
                    pass
            clock.finish()
        tracing.close()
        (spans,) = received(receiver).values()
    by_name = {span.name: span for _, span in spans}
    assert set(by_name) == {"step", "wait", "train"}
    assert attributes(by_name["step"]) == {"step": 3}
    assert by_name["wait"].parent_span_id == by_name["train"].parent_span_id
    assert by_name["wait"].parent_span_id == by_name["step"].span_id


def test_a_token_for_the_collector_comes_from_opentelemetry_s_own_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret")
    with collecting() as receiver:
        tracing = Tracing(SERVICE, f"{receiver.url}/")
        with tracing.span("step"):
            pass
        tracing.close()
        assert receiver.received.get(timeout=60)[0] == SERVICE
        assert [headers["authorization"] for headers in receiver.headers] == ["Bearer secret"]


def test_without_an_endpoint_nothing_is_traced(tmp_path: Path) -> None:
    tracing = Tracing(SERVICE, None)
    with watched(RankWatch(tmp_path, rank=0, size=1, limit_s=60)) as watch:
        clock = PhaseClock(watch, 0, tracing)
        with clock("wait"):
            pass
        clock.finish()
    assert tracing.begin("group") is None
    assert list(clock.seconds) == ["wait"]
