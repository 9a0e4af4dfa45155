"""The page of Prometheus metrics, by the services' registries."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from docs.hooks.fields import prose
from monitor_service.exporter import RunCollector
from monitor_service.run_state import RunState
from monitor_service.training import Beat, Training
from services.redis.backlog import Backlog
from services.run_folder import RunFolder
from services.schemas.weights import PolicyRecord, ServerRecord
from services.settings import DataSettings, ModelSettings, RunSettings, Settings

_START = """# Prometheus metrics

```
curl -s http://127.0.0.1:8400/metrics | grep sgg_queue_groups
```

prints how many groups wait on each queue. Each service has its own `/metrics`, which asks for no
token; the monitor's has the numbers of a whole run, each with the label `run`.
[Operations](../operations.md#the-monitor) explains them together, with the alerts and dashboards
that come with the project. Three kinds of numbers are not in these tables: each
[metric](../metrics.md) of the trainer's last step is `sgg_trainer_<key>`, and of the last
evaluation `sgg_evaluation_<key>`, with `_s` written `_seconds`; and a rollout server passes on
vLLM's own `vllm:…`.
"""
_HEAD = "| metric | type | labels | meaning |\n|---|---|---|---|"


def page(apps: Mapping[str, FastAPI]) -> str:
    """The Markdown: a table for each service, and one of what they share."""
    for app in apps.values():  # what counts requests is else made with the first one
        app.middleware_stack = app.middleware_stack or app.build_middleware_stack()
    tables = {app.title.capitalize(): _rows(app.state.registry) for app in apps.values()}
    tables["Monitor"] |= {
        family.name: _row(family, family._labelnames) for family in _example_run()
    }
    shared = set.intersection(*map(set, tables.values()))
    every = {name: tables["Monitor"][name] for name in tables["Monitor"] if name in shared}
    parts = [_START]
    for title, rows in (*tables.items(), ("Every service", every)):
        own = [row for name, row in rows.items() if rows is every or name not in shared]
        parts.append("\n".join([f"## {title}\n", _HEAD, *own, ""]))
    return "\n".join(parts)


def _example_run() -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
    """Every family that a run with a server and a policy has."""
    there = Path(tempfile.gettempdir())  # a folder whose disk can be measured
    settings = Settings(
        run=RunSettings(root=there.parent, name=there.name),
        model=ModelSettings(path="model"),
        data=DataSettings(train="data"),
    )
    training = Training(RunFolder(Path("run")))
    training.beat, training.step_interval_s = Beat(phase="train", at=0.0), 1.0
    collector = RunCollector(settings, training)
    collector.state = _STATE
    return collector.collect()  # type: ignore[return-value]


_POLICY = PolicyRecord(policy_version=0, incarnation=1, checksum="0" * 64, transport="shm")
_SERVER = ServerRecord(
    server_id="host-1",
    url="http://host:8200",
    host="host",
    gpu=None,
    state="ready",
    policy_version=0,
    tokens_per_s=0.0,
    groups_done=0,
)
_EMPTY = Backlog(waiting=0, leased=0, oldest_s=0.0)
_STATE = RunState(
    redis_persistent=True,
    redis_memory_bytes=0,
    redis_limit_bytes=0,
    backlogs={"prompts": _EMPTY, "rollouts": _EMPTY},
    dead=Counter(),
    servers=[_SERVER],
    policy=_POLICY,
    incarnation=1,
    committed_step=0,
)


def _rows(registry: CollectorRegistry) -> dict[str, str]:
    """By the metric's name; labels are those that it declares, though nothing was counted yet."""
    collectors = registry._names_to_collectors
    return {
        metric.name: _row(metric, getattr(collectors.get(metric.name), "_labelnames", ()))
        for metric in registry.collect()
    }


def _row(metric: Metric, labels: Iterable[str]) -> str:
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    names = ", ".join(f"`{label}`" for label in labels if label != "run")
    return f"| `{name}` | {metric.type} | {names} | {prose(metric.documentation)} |"
