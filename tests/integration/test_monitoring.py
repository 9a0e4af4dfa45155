"""The monitor over a small run: real Redis, services and records; and a real Prometheus."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest

from evaluation.of_a_run.heldout import clean_reference
from monitor_service.dead import DeadKind, DeadLetters
from scene_data.dataset import open_dataset
from scene_graph.metrics.heldout_metrics import strict_metrics
from services.host.ports import free_port
from services.http.clients.rollout import RolloutClient
from services.redis.backlog import read_backlog
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.queue import RedisQueue
from services.redis.registry import Registry
from services.settings import RedisSettings, Settings, dump_settings
from services.telemetry import Tracing
from tests.conftest import RedisStarter
from tests.integration.test_trainer_tracing import lay_out, take_one_batch
from tests.processes import ROOT, sgg_process, wait_for, wait_ready
from tests.prometheus import Prometheus, alert_rules, needs_prometheus, promtool, scraping
from tests.shm_versions import ShmRun
from tests.unit.trainer.test_metrics_page import MADE_BY_EVALUATION, MADE_BY_THE_ENGINE, learned
from trainer.batches.micro_batches import plan_metrics, plan_step
from trainer.ranks.watch import RankWatch, watched
from trainer.records.files import RunRecords, ledger_line, metrics_line
from trainer.records.phases import PhaseClock
from trainer.records.tracing import SERVICE
from trainer.types import StepBatch

DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
SOMETIMES_EMPTY = (
    "ALERTS",  # only while something is wrong
    "vllm:",  # only with that engine
    "sgg_redis_memory_limit_bytes",  # the panel shows a limit only where there is one
)
ALL_UP = dict.fromkeys(("monitor", "reward", "rollout"), "up")
OF_PROMETHEUS = {"up", "ALERTS"}


@dataclass
class LiveRun:
    """A run with one of each service."""

    settings: Settings
    redis: "subprocess.Popen[bytes]"
    start_redis: Any

    @property
    def monitor(self) -> str:
        return self.settings.monitor.url

    def metrics(self, url: str = "") -> dict[str, float]:
        """Every sample of a service, the monitor's by default."""
        text = httpx.get(f"{url or self.monitor}/metrics", trust_env=False).text
        rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in rows}

    def monitored(self, name: str, **labels: str) -> float | None:
        """One of the monitor's; None where it is not there."""
        inside = ",".join(
            f'{k}="{v}"' for k, v in sorted({"run": self.settings.run.name, **labels}.items())
        )
        return self.metrics().get(f"{name}{{{inside}}}")


@pytest.fixture(scope="module")
def live_run(
    tmp_path_factory: pytest.TempPathFactory, start_redis: RedisStarter
) -> Iterator[LiveRun]:
    folder = tmp_path_factory.mktemp("monitored")
    redis_port, keys = free_port(), RunKeys("monitored")
    redis = start_redis(folder, redis_port)
    laid_out = lay_out(folder, keys, f"redis://127.0.0.1:{redis_port}/0", "http://127.0.0.1:9")
    settings = Settings.model_validate(
        laid_out.model_dump()
        | {"telemetry": {}, "monitor": {"url": f"http://127.0.0.1:{free_port()}"}}
    )
    config = folder / "run.toml"
    config.write_text(dump_settings(settings))
    run = LiveRun(settings, redis, lambda: start_redis(folder, redis_port))
    shm = ShmRun(settings.run.name)

    def command(service: str) -> Any:
        return sgg_process(folder / f"{service}.log", "serve", service, "--config", str(config))

    with (
        command("reward") as reward,
        command("rollout") as rollout,
        command("monitor") as monitor,
        watched(RankWatch(settings.run.folder / "ranks", rank=0, size=1, limit_s=60)) as watch,
    ):
        for service, process in (("reward", reward), ("rollout", rollout), ("monitor", monitor)):
            wait_ready(getattr(settings, service).url, process, folder / f"{service}.log")
        clock = PhaseClock(watch, 0, Tracing(SERVICE, None))
        with clock("wait"):
            batch = take_one_batch(settings, keys)
        asyncio.run(update_and_ask_for_nonsense(settings, keys, shm))
        write_steps(settings, batch, clock)
        yield run
    run.redis.kill()
    run.redis.wait()
    shm.clean()


def write_steps(settings: Settings, batch: StepBatch, clock: PhaseClock) -> None:
    """Two steps and an evaluation, as rank 0 writes them."""
    records = RunRecords(settings, 0)
    records.cut_to(0)
    other = learned(old_logprobs="trainer", correction="truncate", beta=0.1) | learned()
    keys = other | MADE_BY_THE_ENGINE | MADE_BY_EVALUATION
    plan = plan_metrics(plan_step(batch.groups, num_ranks=1, max_tokens=4096))
    for step in range(2):
        row = metrics_line(batch, dict.fromkeys(keys, 0.1) | plan, step, 9, clock)
        records.step(row | {"sampler_idle_fraction": 0.5}, ledger_line(batch, step))
    sample = clean_reference(open_dataset(settings.data.train)[0], "sgg")
    scores = asdict(strict_metrics([(sample, sample)]))
    records.evaluations([{"step": 1, "time": time.time(), **scores}], 1)


async def update_and_ask_for_nonsense(settings: Settings, keys: RunKeys, shm: ShmRun) -> None:
    """Version 1 is published and served, and a group that is none has been asked for."""
    version, redis = shm.write(1), connect(settings.redis)
    async with RolloutClient(settings.rollout.url) as client:
        await client.stage(version.stage)
        await client.commit(version.commit)
    await Registry(redis, keys).publish_policy(version.record, version.manifest)
    queue = RedisQueue(redis, keys)
    await queue.enqueue("prompts/0", "no group", b"{}")
    await redis.aclose()


def test_the_console_is_beside_the_numbers(live_run: LiveRun) -> None:
    run = f"{live_run.monitor}/runs/{live_run.settings.run.name}"
    page = httpx.get(run, trust_env=False)
    assert page.status_code == 200
    assert "step 2 of 9" in page.text
    with httpx.stream("GET", f"{run}/servers/events", trust_env=False, timeout=30) as events:
        lines = events.iter_lines()
        assert next(lines) == "event: servers"
        told = "".join(line for line in takewhile(bool, lines))
    server = httpx.get(f"{live_run.settings.rollout.url}/v1/policy", trust_env=False).json()
    assert server["server_id"] in told
    assert "rollouts, groups waiting" in told


def expressions() -> dict[str, str]:
    """Those of all dashboards, as Grafana would send them, with their legends."""
    found = {}
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                text = target["expr"].replace("$__rate_interval", "1m")
                found[text.replace("$run", "monitored")] = target["legendFormat"]
    return found


@needs_prometheus
def test_prometheus_reads_the_run_and_answers_every_panel(
    live_run: LiveRun, tmp_path: Path
) -> None:
    over_http = {"monitor:8400": live_run.monitor.removeprefix("http://")}
    by_files = {"../../runs": str(live_run.settings.run.root)}
    with (
        scraping(tmp_path / "http", "prometheus.yml", **over_http) as prometheus,
        scraping(tmp_path / "files", "prometheus-files.yml", **by_files) as other,
    ):
        wait_for("targets", lambda: prometheus.up() == other.up() == ALL_UP)
        wait_for("the last step", lambda: bool(prometheus.query("sgg_trainer_step == 1")))
        wait_for("a dead group", lambda: bool(prometheus.query("sgg_dead_letters > 0")))
        wait_for("rates", lambda: len(prometheus.query("count_over_time(up[1m]) > 2")) == 3)
        wait_for("rules", lambda: healthy_rules(prometheus) == len(alert_rules()))
        for expression, legend in expressions().items():
            found = prometheus.query(expression)
            assert found or any(name in expression for name in SOMETIMES_EMPTY), expression
            labels = set(re.findall(r"{{(\w+)}}", legend))
            assert all(labels <= series.keys() for series in found), expression
        firing = prometheus.query('ALERTS{alertstate="firing"}')
        assert not [alert for alert in firing if alert["severity"] == "critical"]


def healthy_rules(prometheus: Prometheus) -> int:
    rules = [rule for group in prometheus.get("/rules")["groups"] for rule in group["rules"]]
    return sum(rule["health"] == "ok" for rule in rules)


def test_the_monitor_knows_the_run(live_run: LiveRun) -> None:
    expected = [
        ("sgg_redis_up", {}, 1),
        ("sgg_redis_persistent", {}, 1),
        ("sgg_policy_version", {}, 1),
        ("sgg_rollout_servers", {"state": "ready"}, 1),
        ("sgg_rollout_servers", {"state": "quarantined"}, 0),
        ("sgg_dead_letters", {"stream": "prompts", "reason": "data"}, 1),
        ("sgg_dead_letters", {"stream": "rollouts", "reason": "refused"}, 0),
        ("sgg_queue_groups", {"stream": "prompts", "state": "waiting"}, 0),
        ("sgg_trainer_step", {}, 1),
        ("sgg_trainer_groups_total", {"outcome": "trained"}, 4),
        ("sgg_trainer_phase", {"phase": "wait"}, 1),
        ("sgg_evaluation_triplet_f1", {}, 1),
    ]
    for name, labels, value in expected:
        wait_for(
            f"{name} {labels}",
            lambda name=name, labels=labels, value=value: (  # type: ignore[misc]
                live_run.monitored(name, **labels) == value
            ),
        )
    (server,) = [name for name in live_run.metrics() if "server_policy_lag" in name]
    wait_for("a heartbeat", lambda: live_run.metrics()[server] == 0)
    served = live_run.metrics(live_run.settings.rollout.url)
    assert served['rollout_weight_update_seconds_count{phase="commit"}'] == 1
    assert served['rollout_weight_update_failures_total{phase="commit"}'] == 0


def test_prometheus_is_told_where_the_services_are(live_run: LiveRun) -> None:
    settings = live_run.settings
    found = httpx.get(f"{live_run.monitor}/v1/targets", trust_env=False).json()
    by_service = {group["labels"]["service"]: group for group in found}
    for service in ("reward", "rollout"):
        place = getattr(settings, service).url.removeprefix("http://")
        assert by_service[service]["targets"] == [place]
        assert by_service[service]["labels"]["run"] == settings.run.name
    file = settings.run.root / f"{settings.run.name}.targets.json"
    in_file = json.loads(file.read_text())
    assert in_file[1:] == found
    assert in_file[0]["targets"] == [live_run.monitor.removeprefix("http://")]


def names_in(expression: str) -> set[str]:
    """Metrics that an expression names."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expression)
    bare = re.sub(r"\{[^}]*\}", "{}", bare)
    bare = re.sub(r"\b(by|on|group_left|without)\s*\([^)]*\)", "", bare)
    words = {"and", "or", "unless", "by", "on", "Inf"}
    return set(re.findall(r"(?<![\w:.])[a-zA-Z_][\w:]*(?![\w:]|\s*\()", bare)) - words


def exported(run: LiveRun) -> set[str]:
    """Metrics of the three services."""
    urls = (run.monitor, run.settings.reward.url, run.settings.rollout.url)
    return {name.partition("{")[0] for url in urls for name in run.metrics(url)}


def test_dashboards_and_rules_name_only_what_is_exported(live_run: LiveRun) -> None:
    recorded = {rule["record"] for rule in alert_rules() if "record" in rule}
    known = exported(live_run) | recorded | OF_PROMETHEUS | set(of_vllm())
    rules = [rule["expr"] for rule in alert_rules()]
    assert len(rules) > 20
    for expression in [*rules, *expressions()]:
        assert names_in(expression), expression
        assert names_in(expression) <= known, expression


def of_vllm() -> Iterator[str]:
    """What vLLM's own code says that it exports."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "v1/metrics/loggers.py").read_text()
    for name in re.findall(r'"(vllm:\w+)"', text):
        yield from (name, f"{name}_total")


@needs_prometheus
def test_rules_and_configurations_are_sound() -> None:
    assert "SUCCESS" in promtool("check", "rules", "alerts.yml")
    for file in ("prometheus.yml", "prometheus-files.yml"):
        promtool("check", "config", file)
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


@needs_prometheus
def test_metrics_keep_prometheus_s_rules(live_run: LiveRun) -> None:
    text = httpx.get(f"{live_run.monitor}/metrics", trust_env=False).content
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()


def test_redis_goes_away_and_comes_back(live_run: LiveRun) -> None:
    """Last: it takes the others' Redis away."""
    live_run.redis.kill()
    live_run.redis.wait()
    wait_for("the loss", lambda: live_run.monitored("sgg_redis_up") == 0)
    assert live_run.monitored("sgg_policy_version") is None
    assert live_run.monitored("sgg_trainer_step") == 1
    answer = httpx.get(f"{live_run.monitor}/v1/targets", trust_env=False)
    assert answer.status_code == 503  # so that Prometheus keeps what it knows
    assert httpx.get(f"{live_run.monitor}/readyz", trust_env=False).status_code == 200
    live_run.redis = live_run.start_redis()
    wait_for("the return", lambda: live_run.monitored("sgg_policy_version") == 1)


async def test_backlog_and_dead_letters(redis_url: str, run_keys: RunKeys) -> None:
    redis = connect(RedisSettings(url=redis_url))
    queue, dead = RedisQueue(redis, run_keys, max_expiries=1), DeadLetters(redis, run_keys)
    streams = ["prompts/1", "prompts/2"]
    assert (await read_backlog(redis, run_keys, streams)).oldest_s == 0
    for stream, name in zip((*streams, *streams), "abcd", strict=True):
        await queue.enqueue(stream, name, b"{}")
    lease = await queue.claim(streams, "me", lease_s=60, block_s=0)
    backlog = await read_backlog(redis, run_keys, streams)
    assert (backlog.waiting, backlog.leased) == (3, 1)
    assert 0 <= backlog.oldest_s < 60
    assert lease is not None
    await queue.fail(lease, "EngineError on node7-8200-a1: out of memory", max_deliveries=1)
    assert await dead.count() == {DeadKind("prompts", "server"): 1}
    while (await read_backlog(redis, run_keys, streams)).waiting:  # each lease expires at once
        await queue.claim(streams, "me", lease_s=0.001, block_s=0)
    await asyncio.sleep(0.01)
    assert await queue.claim(streams, "me", lease_s=0.001, block_s=0) is None
    await queue.bury("rollouts", "e", b"{}", "the completion holds an image token")
    assert await dead.count() == {
        DeadKind("prompts", "server"): 1,
        DeadKind("prompts", "lease_expired"): 3,
        DeadKind("rollouts", "refused"): 1,
    }
    for letter in await queue.dead_letters():
        await queue.drop(letter.entry_id)
    assert await dead.count() == {}
    await redis.aclose()
