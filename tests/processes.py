"""Starts `sgg-rl` processes for tests, as a user would, and ends them."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from services.host.environment import child_environment

ROOT = Path(__file__).parents[1]
OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Set in this process by a test that trains in it."""


@contextmanager
def sgg_process(
    log: Path, *arguments: str, root: Path = ROOT
) -> Iterator["subprocess.Popen[bytes]"]:
    """A running `sgg-rl` command; killed at the end if it still runs. Output goes to `log`.

    Args:
        log: The file.
        arguments: The command's.
        root: The project's folder, or a changed copy of it.
    """
    environment = child_environment(OMP_NUM_THREADS="1", PYTHONPATH=str(root))
    for name in OF_A_RANK:
        environment.pop(name, None)
    with log.open("a") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=root,
            stdout=out,
            stderr=out,
            env=environment,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_ready(
    url: str, process: "subprocess.Popen[bytes]", log: Path, timeout_s: float = 60
) -> None:
    """Until `/readyz` says 200; fails with the log when the process ends or the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"it ended:\n{log.read_text()[-4000:]}"
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready in {timeout_s:g} s:\n{log.read_text()[-4000:]}")


def wait_for(
    what: str, condition: Callable[[], object], timeout_s: float = 60.0, *, every_s: float = 0.05
) -> None:
    """Until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(every_s)
