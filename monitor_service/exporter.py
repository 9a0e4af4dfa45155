"""A run as Prometheus metrics; units are seconds and bytes, times are Unix times."""

import itertools
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from monitor_service.dead import DeadKind, DeadStream, Reason
from monitor_service.run_state import RunState
from monitor_service.training import OUTCOMES, Training
from services.schemas.weights import PolicyRecord, PolicyState, ServerRecord
from services.settings import Settings

_LABELS = {
    "reward_terms": "term",
    "failures": "status",
    "phases_s": "phase",
    "version_s": "phase",
    "clip_fraction_by_iteration": "iteration",
    "predicate_recall": "predicate",
}
"""The label of the nested numbers under a key of `metrics.jsonl` or `evaluations.jsonl`."""


_Family = GaugeMetricFamily | CounterMetricFamily


class Families:
    """Families named `sgg_…`, each with the label `run`.

    Example: `families.gauge("queue_groups", "Groups on a stream", 3, stream="prompts")`
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._families: dict[str, _Family] = {}

    def gauge(self, name: str, text: str, value: float, **labels: str) -> None:
        """Add a value to `sgg_<name>`. All of one name have the same text and labels."""
        self._add(GaugeMetricFamily, name, text, value, labels)

    def counter(self, name: str, text: str, value: float, **labels: str) -> None:
        """The same for a number that only rises: `sgg_<name>_total`."""
        self._add(CounterMetricFamily, name, text, value, labels)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())

    def _add(
        self, kind: type[_Family], name: str, text: str, value: float, labels: dict[str, str]
    ) -> None:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = kind(f"sgg_{name}", text, labels=["run", *labels])
        family.add_metric([self._run, *labels.values()], value)


class RunCollector(Collector):
    """Turns what was read last into metrics, at each scrape."""

    def __init__(self, settings: Settings, training: Training) -> None:
        """Nothing is known yet.

        Args:
            settings: The run's.
            training: Kept up to date by the caller, as is `state`.
        """
        self.state: RunState | None = None
        """None while Redis is away: then its metrics are missing, instead of growing old."""
        self._settings = settings
        self._training = training

    def collect(self) -> Iterator[Metric]:
        """Metrics of now."""
        families = Families(self._settings.run.name)
        families.gauge("redis_up", "1 while Redis answers", self.state is not None)
        trainer = self._settings.trainer
        for name, limit, whose in (
            ("max_policy_lag", trainer.max_policy_lag, "groups are behind on average"),
            ("max_token_lag", trainer.oldest_token_lag, "any token may be behind"),
        ):
            families.gauge(name, f"Versions that {whose}, at most", limit)
        if self.state is not None:
            _add_redis(families, self.state)
            _add_queues(families, self.state)
            _add_servers(families, self.state)
        _add_training(families, self._training)
        _add_row(families, "trainer", "last step", self._training.last)
        _add_row(families, "evaluation", "last evaluation", self._training.evaluation)
        self._add_disk(families)
        yield from families

    def _add_disk(self, families: Families) -> None:
        try:
            disk = shutil.disk_usage(self._settings.run.folder)
        except OSError:  # not there before the first start, or its file system is away
            return
        families.gauge("run_disk_free_bytes", "Free where the run's folder is", disk.free)
        families.gauge("run_disk_size_bytes", "Size of that file system", disk.total)


def _add_redis(families: Families, state: RunState) -> None:
    families.gauge("redis_persistent", "1 while every write goes to a file", state.redis_persistent)
    families.gauge("redis_memory_bytes", "Memory that Redis uses", state.redis_memory_bytes)
    families.gauge("redis_memory_limit_bytes", "Its maxmemory; 0 is none", state.redis_limit_bytes)
    families.gauge("committed_step", "Steps whose checkpoint is complete", state.committed_step)
    families.gauge("trainer_incarnation", "Starts of the trainer", state.incarnation)
    if state.policy is not None:
        families.gauge("policy_version", "The version to serve", state.policy.policy_version)


def _add_queues(families: Families, state: RunState) -> None:
    for stream, backlog in state.backlogs.items():
        for name, number in (("waiting", backlog.waiting), ("leased", backlog.leased)):
            text = "Groups on a stream, claimed by nobody or by somebody"
            families.gauge("queue_groups", text, number, stream=stream, state=name)
        text = "Age of the oldest group on a stream; 0: there is none"
        families.gauge("queue_oldest_age_seconds", text, backlog.oldest_s, stream=stream)
    for kind in itertools.starmap(
        DeadKind, itertools.product(get_args(DeadStream), get_args(Reason))
    ):
        text = "Groups in the dead letters, by where they died and why"
        families.gauge("dead_letters", text, state.dead[kind], **kind._asdict())


def _add_servers(families: Families, state: RunState) -> None:
    states = [server.state for server in state.servers]
    for name in get_args(PolicyState):
        text = "Live rollout servers by state"
        families.gauge("rollout_servers", text, states.count(name), state=name)
    for server in state.servers:
        _add_server(families, server, state.policy)


def _add_server(families: Families, server: ServerRecord, policy: PolicyRecord | None) -> None:
    name = server.server_id
    if server.state != "starting":  # one that loads its model is behind nothing yet
        version = server.policy_version
        text = "The version that a rollout server serves"
        families.gauge("rollout_server_policy_version", text, version, server=name)
        text = "Versions that a rollout server is behind the one to serve"
        behind = max(0, policy.policy_version - version) if policy else 0
        families.gauge("rollout_server_policy_lag", text, behind, server=name)
    text = "Tokens a second, over the last minute"
    families.gauge("rollout_server_tokens_per_second", text, server.tokens_per_s, server=name)
    text = "Groups that a server samples now"
    families.gauge("rollout_server_groups_in_flight", text, server.groups_in_flight, server=name)
    text = "Groups of the queue that it samples at the same time"
    families.gauge("rollout_server_groups_limit", text, server.groups_limit, server=name)


def _add_training(families: Families, training: Training) -> None:
    text = "What became of groups, since the monitor's start"
    for outcome in OUTCOMES.values():
        families.counter("trainer_groups", text, training.groups[outcome], outcome=outcome)
    text = "Sampled tokens of the steps since the monitor's start"
    families.counter("trainer_tokens", text, training.num_tokens)
    if training.step_interval_s is not None:
        text = "Median time between the last steps"
        families.gauge("trainer_step_interval_seconds", text, training.step_interval_s)
    if training.beat is not None:
        text = "Last sign of life of the trainer's rank 0"
        families.gauge("trainer_beat_timestamp_seconds", text, training.beat.at)
        text = "1 for what the trainer's rank 0 does, or did last"
        families.gauge("trainer_phase", text, 1, phase=training.beat.phase)


def _add_row(families: Families, prefix: str, which: str, row: Mapping[str, Any]) -> None:
    """Each number of a line, under its own name with the unit spelt out."""
    for key, value in row.items():
        name, text = f"{prefix}_{_with_unit(key)}", f"`{key}` of the {which}: docs/metrics.md"
        if isinstance(value, dict):
            for part, number in value.items():
                if isinstance(number, int | float):
                    families.gauge(name, text, number, **{_LABELS.get(key, "part"): part})
        elif isinstance(value, int | float):
            families.gauge(name, text, value)


def _with_unit(key: str) -> str:
    """Example: `tokens_per_second` of `tokens_per_s`, `last_timestamp_seconds` of `time`."""
    if key == "time":
        return "last_timestamp_seconds"
    if key.endswith("_per_s"):
        return f"{key}econd"
    return f"{key}econds" if key.endswith("_s") else key
