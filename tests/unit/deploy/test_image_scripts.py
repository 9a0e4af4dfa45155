"""The scripts that the images are built and watched with."""

import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from services.host.environment import child_environment, environment_value
from services.host.ports import free_port
from services.redis.server import redis_server_command
from services.settings import Settings, dump_settings
from tests.processes import wait_for

ROOT = Path(__file__).parents[3]
PASSWORD = "not-guessed"


def script(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-IS", str(ROOT / "deploy" / "docker" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


class Service(BaseHTTPRequestHandler):
    """Ready at one path, not at another."""

    def do_GET(self) -> None:
        ready = self.path == "/readyz"
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(b"the model is loading")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_service_is_ready_when_it_says_so(service: str) -> None:
    assert script("ready.py", f"{service}/readyz").returncode == 0
    loading = script("ready.py", f"{service}/loading")
    assert (loading.returncode, loading.stdout) == (1, "the model is loading\n")


def test_a_service_that_is_not_there_is_not_ready() -> None:
    absent = script("ready.py", f"http://127.0.0.1:{free_port()}/readyz")
    assert absent.returncode == 1
    assert "refused" in absent.stdout


def test_redis_is_ready_for_those_who_know_its_password(tmp_path: Path) -> None:
    port, right, wrong = free_port(), tmp_path / "right", tmp_path / "wrong"
    right.write_text(PASSWORD + "\n")
    wrong.write_text("guessed\n")
    url = f"redis://127.0.0.1:{port}"
    command = redis_server_command(tmp_path / "redis", port, password=PASSWORD)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for("Redis", lambda: script("ready.py", url, str(right)).returncode == 0)
            refused = script("ready.py", url, str(wrong))
        finally:
            server.kill()
    assert refused.returncode == 1
    assert "WRONGPASS" in refused.stdout


def test_the_packages_are_listed_without_the_rest_of_the_project() -> None:
    def listed(project: str) -> str:
        command = [sys.executable, "-IS", str(ROOT / "deploy" / "docker" / "package_lists.py")]
        done = subprocess.run(command, input=project, capture_output=True, text=True, check=True)
        return done.stdout

    project = (ROOT / "pyproject.toml").read_text()
    whole, found = tomllib.loads(project)["project"], tomllib.loads(listed(project))["project"]
    for key in ("dependencies", "optional-dependencies"):
        assert found[key] == whole[key]
    released = re.sub('version = ".*"', 'version = "99"', project).replace("line-length = 100", "")
    assert listed(released) == listed(project)
    assert listed(project.replace("ninja", "samurai")) != listed(project)


@pytest.fixture
def take_gpus(tmp_path: Path) -> Callable[[int], "subprocess.Popen[str]"]:
    """Start a server of those that see five GPUs: it says which it has, and stays."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nseq 0 4\n")
    program.chmod(0o755)
    environment = child_environment(
        XDG_CACHE_HOME=str(tmp_path), PATH=f"{tmp_path}:{environment_value('PATH')}"
    )
    server = 'echo "$CUDA_VISIBLE_DEVICES at $SGG__ROLLOUT__URL"; exec sleep 60'
    script, run = ROOT / "deploy" / "docker" / "own-gpus.sh", tmp_path / "run.toml"

    def start(size: int = 2) -> "subprocess.Popen[str]":
        tree = {"model": {"path": "m"}, "data": {"train": "t"}}
        sections = tree | {"rollout": {"tensor_parallel_size": size}}
        run.write_text(dump_settings(Settings.model_validate(sections)))
        command = [str(script), str(run), "sh", "-c", server]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def test_each_server_takes_gpus_that_no_other_holds(
    take_gpus: Callable[..., "subprocess.Popen[str]"],
) -> None:
    url = f"http://{socket.gethostname()}:8200"

    def said(server: "subprocess.Popen[str]") -> str:
        assert server.stdout is not None
        return server.stdout.readline()

    with take_gpus() as first:
        try:
            assert said(first) == f"3,4 at {url}\n"
            with take_gpus() as second:
                try:
                    assert said(second) == f"1,2 at {url}\n"
                    with take_gpus() as third:
                        _, error = third.communicate(timeout=30)
                    assert third.returncode == 1
                    assert "1 GPUs are free and rollout.tensor_parallel_size is 2" in error
                    first.kill()
                    first.wait()
                    with take_gpus(3) as again:
                        try:
                            assert said(again) == f"0,3,4 at {url}\n"
                        finally:
                            again.kill()
                finally:
                    second.kill()
        finally:
            first.kill()
