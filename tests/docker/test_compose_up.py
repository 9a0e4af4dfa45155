"""`docker compose up` on a real engine: real trainer, reward service and Redis, the fake engine.

`make test-docker`. One start-up goes through everything that may happen to a run.
"""

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.docker_stack import ROOT, Stack, stack, why_no_engine

RUN = "chaos"
NUM_STEPS = 40
PARTS = ("redis", "reward", "rollout", "trainer", "monitor")
USER = ["10001"] * 4
"""Real, effective, saved, of the file system."""
OWN_MEMORY = {"/tmp", "/dev/shm", "/dev/mqueue"}
WRITABLE: dict[str, set[str]] = {
    "redis": {"/queue"},
    "reward": set(),
    "rollout": {"/cache"},
    "trainer": {"/cache", "/runs", f"/dev/shm/sgg-{USER[0]}"},
    "monitor": {"/cache"},
}
STOPPED_WITH_CHECKPOINT = 75
HF_TOKEN = "hf_of-nobody"
DEAD_PROXY = "http://127.0.0.1:9"
ARGUMENTS = (
    # A step takes about a second, so that faults hit a run that goes on.
    "--set rollout.engine=fake --set rollout.fake_tokens_per_s=1000 "
    f"--set trainer.num_steps={NUM_STEPS} --set trainer.groups_per_step=4 "
    "--set trainer.group_size=4 --set trainer.checkpoint_every=2"
)


@pytest.fixture(scope="module")
def run() -> Iterator[Stack]:
    if problem := why_no_engine():
        pytest.skip(f"no containers here: {problem}")
    name = f"sgg-rl-test-{secrets.token_hex(3)}"
    # A proxy that answers nobody: the parts do not ask it for one another.
    proxy = {"HTTP_PROXY": DEAD_PROXY, "http_proxy": DEAD_PROXY}
    knobs = {"RUN_NAME": RUN, "ARGS": ARGUMENTS, "COMPOSE_PROFILES": "monitoring"}
    with stack(name, **knobs, **proxy, HF_TOKEN=HF_TOKEN) as made:
        made.up(*PARTS)
        yield made


def lines(run: Stack, file: str) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in run.read("runs", f"{RUN}/{file}").splitlines()]


def wait_for_step(run: Stack, step: int) -> None:
    run.wait_for(f"step {step}", lambda: len(lines(run, "ledger.jsonl")) > step)


def wait_for_restart(run: Stack, service: str) -> None:
    run.wait_for(f"another {service}", lambda: bool(run.inspect(service)["RestartCount"]))


def wait_until_healthy(run: Stack, service: str) -> None:
    run.wait_for(f"a healthy {service}", lambda: run.state(service) == "running healthy")


def secret(run: Stack, name: str) -> str:
    return run.compose("exec", "-T", "reward", "cat", f"/secrets/{name}").strip()


def test_the_run_gets_on(run: Stack) -> None:
    wait_for_step(run, 1)
    assert run.state("prepare") == "exited 0"
    for service in ("redis", "reward", "rollout", "monitor"):
        wait_until_healthy(run, service)


@pytest.mark.parametrize("service", PARTS)
def test_no_process_can_do_more_than_a_plain_user(run: Stack, service: str) -> None:
    processes = run.processes(service)
    assert len(processes) >= 2  # tini and the service, at least
    for process in processes:
        assert process["Uid"].split() == USER
        assert process["Gid"].split() == USER
        assert int(process["CapBnd"], 16) == 0
        assert process["NoNewPrivs"] == "1"
        assert process["Seccomp"] == "2"


@pytest.mark.parametrize("service", PARTS)
def test_nothing_is_writable_that_should_not_be(run: Stack, service: str) -> None:
    assert run.writable(service) == OWN_MEMORY | WRITABLE[service]


@pytest.mark.parametrize("service", PARTS)
def test_secrets_are_in_their_files_alone(run: Stack, service: str) -> None:
    shown = json.dumps(run.inspect(service)) + run.commands(service) + run.logs(service)
    for name in ("data_token", "admin_token", "redis_password"):
        assert secret(run, name) not in shown


@pytest.mark.parametrize("service", PARTS)
def test_a_hubs_token_is_in_the_environment_of_those_that_fetch(run: Stack, service: str) -> None:
    shown = run.inspect(service)
    given = {f"HF_TOKEN={HF_TOKEN}", f"HTTP_PROXY={DEAD_PROXY}"} & set(shown["Config"].pop("Env"))
    assert len(given) == (2 if service in ("rollout", "trainer") else 0)
    assert HF_TOKEN not in json.dumps(shown) + run.logs(service)


def test_ports_are_this_machines_and_ask_for_the_token(run: Stack) -> None:
    for service in PARTS:
        published = run.inspect(service)["NetworkSettings"]["Ports"]
        assert {b["HostIp"] for bound in published.values() for b in bound or []} <= {"127.0.0.1"}
    url = f"http://127.0.0.1:{run.ports['REWARD']}/v1/rubrics"
    token = {"Authorization": f"Bearer {secret(run, 'data_token')}"}
    assert httpx.get(url, trust_env=False).status_code == 401
    assert httpx.get(url, headers=token, trust_env=False).status_code == 200


def test_the_monitor_sees_the_run(run: Stack) -> None:
    url = f"http://127.0.0.1:{run.ports['MONITOR']}"
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    assert re.search(r"^sgg_redis_up(\{.*\})? 1", metrics, re.MULTILINE)
    groups = httpx.get(f"{url}/v1/targets", trust_env=False).json()
    assert {t for g in groups for t in g["targets"]} >= {"reward:8100", "rollout:8200"}


def test_a_killed_rollout_server_comes_back(run: Stack) -> None:
    run.kill("rollout")
    wait_for_restart(run, "rollout")
    wait_until_healthy(run, "rollout")
    wait_for_step(run, len(lines(run, "ledger.jsonl")) + 2)


def test_a_killed_trainer_goes_on_from_its_checkpoint(run: Stack) -> None:
    done = len(lines(run, "ledger.jsonl"))
    run.kill("trainer")
    wait_for_restart(run, "trainer")
    wait_for_step(run, done + 2)


def test_a_stopped_run_is_taken_up_again(run: Stack) -> None:
    done = len(lines(run, "ledger.jsonl"))
    assert done < NUM_STEPS
    run.compose("stop")
    assert run.state("trainer") == f"exited {STOPPED_WITH_CHECKPOINT}"
    run.compose("down")  # the containers are gone, the volumes are not
    assert len(lines(run, "ledger.jsonl")) >= done
    run.up(*PARTS)
    wait_for_step(run, done + 2)


def test_a_start_without_knobs_goes_on_with_the_run(run: Stack) -> None:
    ports = {f"{part}_PORT": str(port) for part, port in run.ports.items()}
    Stack(run.name, **ports).up(*PARTS)
    assert f"goes on with run {RUN} (RUN_NAME={RUN} ARGS=" in run.logs("prepare")
    status = ("sgg-rl", "status", "--json", "--config", "/secrets/run.toml")
    assert json.loads(run.compose("exec", "-T", "monitor", *status))["run"] == RUN
    wait_for_step(run, len(lines(run, "ledger.jsonl")) + 1)
    assert not run.read("runs", "demo/metrics.jsonl")


def test_the_run_ends_with_every_step_once(run: Stack) -> None:
    run.wait_for("the end of the run", lambda: run.state("trainer") == "exited 0", timeout_s=300)
    ledger = lines(run, "ledger.jsonl")
    assert [line["step"] for line in ledger] == list(range(NUM_STEPS))
    used = [group for line in ledger for group in line["group_ids"]]
    assert len(used) == len(set(used)) == NUM_STEPS * 4
    assert [line["step"] for line in lines(run, "metrics.jsonl")] == list(range(NUM_STEPS))
    assert "model_type" in run.read("runs", f"{RUN}/checkpoint/config.json")


def test_prometheus_finds_the_services(run: Stack) -> None:
    start_public(run, "prometheus")
    run.wait_for("two scraped services", lambda: len(scraped(run)) == 2)


def test_grafana_has_the_dashboards(run: Stack) -> None:
    start_public(run, "grafana")
    url = f"http://127.0.0.1:{run.ports['GRAFANA']}/api/search"
    found = {row["uid"] for row in httpx.get(url, trust_env=False).json()}
    files = (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")
    assert {json.loads(file.read_text())["uid"] for file in files} <= found


def test_what_the_run_leaves_can_be_copied_out_after_down(run: Stack) -> None:
    run.compose("down")
    copy = f"tar -C /runs -c {RUN} | tar -t"
    once = ("run", "--rm", "--no-deps", "-T", "--entrypoint", "sh", "monitor", "-c", copy)
    names = {name.removeprefix(f"{RUN}/") for name in run.compose(*once).split()}
    assert names >= {"config.toml", "logs/trainer-0.log", "plots/reward.png", "checkpoint/"}
    assert names >= {"summary.json", "report.html"}, "its data has held-out images"


def test_a_folder_that_is_not_there_is_named(run: Stack) -> None:
    said = r"bind source path does not exist: .*/nowhere"
    other = stack(f"{run.name}-none", INPUTS="nowhere")
    with other as made, pytest.raises(AssertionError, match=said):
        made.up("redis")
    assert not (ROOT / "nowhere").exists()


def start_public(run: Stack, service: str) -> None:
    """Start a service whose image others publish."""
    if not run.has_image(service):
        pytest.skip(f"no image of {service}: no registry answers")
    run.up(service)
    wait_until_healthy(run, service)


def scraped(run: Stack) -> list[Any]:
    """What Prometheus has found by the monitor and reached."""
    url = f"http://127.0.0.1:{run.ports['PROMETHEUS']}/api/v1/query"
    query = {"query": 'up{job="sgg-rl-services"} == 1'}
    found: list[Any] = httpx.get(url, params=query, trust_env=False).json()["data"]["result"]
    return found
