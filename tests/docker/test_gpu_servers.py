"""docker-compose.gpu.yml on a real engine: its servers, with two GPUs that are not there.

Everything is the file's own but the devices, `nvidia-smi`'s answer and the image (no CUDA).
"""

import re
import secrets
from collections.abc import Iterator

import httpx
import pytest

from services.host.ports import free_port
from tests.docker_stack import ROOT, Stack, stack, why_no_engine

NO_DEVICES = """
services:
  trainer:
    image: sgg-rl:cpu
    deploy: {resources: {reservations: {devices: !reset []}}}
  rollout:
    image: sgg-rl:cpu
    deploy: {resources: {reservations: {devices: !reset []}}}
    volumes:
      - {FOLDER}/nvidia-smi:/usr/local/bin/nvidia-smi:ro
      - {ROOT}/deploy/docker/own-gpus.sh:/usr/local/bin/own-gpus:ro
"""
STEPS = 6
ARGUMENTS = (
    "--set rollout.engine=fake --set evaluation.every=0 "
    f"--set trainer.num_steps={STEPS} --set trainer.groups_per_step=8 --set trainer.group_size=4"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if problem := why_no_engine():
        pytest.skip(f"no containers here: {problem}")
    folder = tmp_path_factory.mktemp("gpus")
    folder.chmod(0o755)
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    program.chmod(0o755)
    override = folder / "no-devices.yml"
    override.write_text(NO_DEVICES.replace("{FOLDER}", str(folder)).replace("{ROOT}", str(ROOT)))
    port = free_port()
    files = (ROOT / "docker-compose.yml", ROOT / "docker-compose.gpu.yml", override)
    with stack(
        f"sgg-rl-gpus-{secrets.token_hex(3)}",
        COMPOSE_FILE=":".join(map(str, files)),
        ROLLOUT_SERVERS="2",
        ROLLOUT_PORT=f"{port}-{port + 9}",
        ARGS=ARGUMENTS,
    ) as made:
        made.up("trainer", "monitor")
        yield made


def gpu_of(run: Stack, server: int) -> str:
    """That the processes of one server see."""
    (found,) = set(re.findall(r"\bCUDA_VISIBLE_DEVICES=(\w*)", run.commands("rollout", server)))
    return str(found)


def test_each_server_has_a_gpu_and_a_port_of_its_own(run: Stack) -> None:
    assert {gpu_of(run, server) for server in (1, 2)} == {"1", "2"}  # the trainer has 0
    ports = {run.compose("port", f"--index={n}", "rollout", "8200").strip() for n in (1, 2)}
    assert len(ports) == 2
    assert {port.partition(":")[0] for port in ports} == {"127.0.0.1"}


def test_the_run_samples_on_both(run: Stack) -> None:
    url = f"http://127.0.0.1:{run.ports['MONITOR']}/v1/targets"
    groups = httpx.get(url, trust_env=False).json()
    hosts = {run.inspect("rollout", n)["Config"]["Hostname"] for n in (1, 2)}
    assert {t for group in groups for t in group["targets"]} >= {f"{host}:8200" for host in hosts}
    run.wait_for("the end of the run", lambda: run.state("trainer") == "exited 0")
    samples = run.read("runs", "demo/rollouts/*")
    assert all(host in samples for host in hosts)


def test_a_killed_server_comes_back_alone(run: Stack) -> None:
    run.kill("rollout")
    run.wait_for("a restart", lambda: bool(run.inspect("rollout", 1)["RestartCount"]))
    run.wait_for("a healthy server", lambda: run.state("rollout", 1) == "running healthy")
    assert not run.inspect("rollout", 2)["RestartCount"]
    assert {gpu_of(run, 1), gpu_of(run, 2)} in ({"0", "1"}, {"0", "2"}, {"1", "2"})
