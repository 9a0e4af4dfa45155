"""A run in containers, for tests: docker-compose.yml on a real engine, under a name of its own."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.host.environment import child_environment
from services.host.ports import free_port

ROOT = Path(__file__).parents[1]
SERVICES_IMAGE = "sgg-rl:services"
IMAGES = (SERVICES_IMAGE, "sgg-rl:cpu")
PUBLISHED = ("REWARD", "ROLLOUT", "MONITOR", "PROMETHEUS", "GRAFANA")

_KILL_SERVICE = """
import os
for child in open('/proc/1/task/1/children').read().split():
    os.kill(int(child), 9)
"""
_WRITABLE = """
import os
seen = set()
for top in ('/', *(line.split()[1] for line in open('/proc/mounts'))):
    if not top.startswith(('/proc', '/sys')) and os.path.exists(top) and os.access(top, os.W_OK):
        seen.add(top)
for folder, names, _ in os.walk('/'):
    if folder in ('/proc', '/sys') or folder in seen:
        names.clear()
    elif os.access(folder, os.W_OK):
        seen.add(folder)
        names.clear()
print(*sorted(seen), sep='\\n')
"""
_STATUS = """
import json, os
print(json.dumps([
    dict(line.split(':\\t', 1) for line in open(f'/proc/{pid}/status').read().splitlines())
    for pid in os.listdir('/proc') if pid.isdigit()
]))
"""
_COMMANDS = """
import os
for pid in filter(str.isdigit, os.listdir('/proc')):
    for name in ('cmdline', 'environ'):
        try:
            print(open(f'/proc/{pid}/{name}', 'rb').read().decode(errors='replace'))
        except OSError:  # of a health check that starts or ends
            assert pid != '1'
"""


class Stack:
    """One compose project. Example: `Stack("t1", RUN_NAME="t1").up("redis")`."""

    def __init__(self, name: str, **knobs: str) -> None:
        """Args are kept.

        Args:
            name: The project's; containers, volumes and network are named by it.
            knobs: Those of docker-compose.yml.
        """
        self.name = name
        self.ports = {part: free_port() for part in PUBLISHED}
        chosen = {f"{part}_PORT": str(port) for part, port in self.ports.items()}
        self._environment = child_environment(**(chosen | knobs), COMPOSE_PROJECT_NAME=name)

    def compose(self, *arguments: str, check: bool = True) -> str:
        """What `docker compose …` prints."""
        done = subprocess.run(
            ["docker", "compose", *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0 or not check, f"compose {arguments}:\n{done.stderr[-3000:]}"
        return done.stdout

    def up(self, *services: str) -> None:
        """Start services, and what they need."""
        self.compose("up", "-d", "--no-build", "--pull", "never", *services)

    def python(self, service: str, program: str, index: int = 1) -> str:
        """What a Python program prints inside a service's container, as the service's user."""
        where = ("-T", f"--index={index}", service)
        return self.compose("exec", *where, "python3", "-IS", "-c", program)

    def inspect(self, service: str, index: int = 1) -> dict[str, Any]:
        """`docker inspect` of a service's container, of several the one with that number."""
        name = f"{self.name}-{service}-{index}"
        found: list[dict[str, Any]] = json.loads(docker("inspect", name))
        return found[0]

    def has_image(self, service: str) -> bool:
        """Whether a service's image is here, or can be pulled."""
        config = json.loads(self.compose("config", "--format", "json"))
        image = config["services"][service]["image"]
        return any(
            subprocess.run(command, capture_output=True, timeout=300, check=False).returncode == 0
            for command in (["docker", "image", "inspect", image], ["docker", "pull", "-q", image])
        )

    def kill(self, service: str) -> None:
        """End what the (first) container runs by kill -9, as a crash: `docker kill` is a stop."""
        self.compose("exec", "-T", service, "python3", "-c", _KILL_SERVICE, check=False)

    def state(self, service: str, index: int = 1) -> str:
        """`running healthy`, `exited 75`."""
        state = self.inspect(service, index)["State"]
        detail = state.get("Health", {}).get("Status") if state["Running"] else state["ExitCode"]
        return f"{state['Status']} {detail}"

    def writable(self, service: str) -> set[str]:
        """Folders and mounts that the service's user can write to; the topmost ones."""
        return set(self.python(service, _WRITABLE).split())

    def processes(self, service: str) -> list[dict[str, str]]:
        """`/proc/*/status` of every process in the container."""
        found: list[dict[str, str]] = json.loads(self.python(service, _STATUS))
        return found

    def commands(self, service: str, index: int = 1) -> str:
        """Command lines and environments of every process in the container."""
        return self.python(service, _COMMANDS, index)

    def read(self, volume: str, file: str) -> str:
        """A file of a volume; empty where it is not there."""
        mount = f"{self.name}_{volume}:/volume:ro"
        return docker(
            "run", "--rm", "--network=none", "-v", mount, "--entrypoint=sh", SERVICES_IMAGE,
            "-c", f"cat /volume/{file} 2>/dev/null || true",
        )  # fmt: skip

    def wait_for(self, what: str, condition: Callable[[], bool], timeout_s: float = 180) -> None:
        """Until the condition holds; fails with the logs."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}:\n{self.logs()}"
            time.sleep(0.5)

    def logs(self, *services: str) -> str:
        """The last lines of some containers, or of all."""
        return self.compose("logs", "--no-color", "--tail=30", *services, check=False)[-6000:]


@contextmanager
def stack(name: str, **knobs: str) -> Iterator[Stack]:
    """A project that is gone at the end, with its volumes."""
    made = Stack(name, **knobs)
    try:
        yield made
    finally:
        made.compose("--profile", "*", "down", "-v", "-t", "5", check=False)


def docker(*arguments: str) -> str:
    """What `docker …` prints."""
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"docker {arguments}: {done.stderr[-2000:]}"
    return done.stdout


def why_no_engine() -> str | None:
    """Why no container can be run here, or None."""
    for command, remedy in (
        (["docker", "info"], "start Docker, or set DOCKER_HOST to an engine"),
        (["docker", "compose", "version"], "install Docker's compose plugin"),
        *((["docker", "image", "inspect", image], "`make images`") for image in IMAGES),
    ):
        try:
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        except FileNotFoundError:
            return "no docker here: install it"
        if done.returncode:
            return f"`{' '.join(command)}` fails: {remedy}"
    return None
