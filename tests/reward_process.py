"""The reward service as a process of its own, for tests."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from services.host.ports import free_port
from tests.processes import wait_ready

GOLDEN = Path(__file__).parent / "contract" / "golden"
REQUEST: dict[str, Any] = json.loads((GOLDEN / "reward_request.json").read_text())
TOKEN = "correct horse battery staple"
Process: TypeAlias = "subprocess.Popen[bytes]"
_PROGRAM = """
import signal, sys
# As from a terminal: a shell starts what runs in its background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from reward_service.service.app import serve
from services.settings import Settings
from services.telemetry import setup_logging
setup_logging("reward")
serve(Settings.model_validate_json(sys.argv[1]))
"""


def start(url: str, log: Path, token: str = TOKEN, **settings: Any) -> Process:
    """Start it; the caller waits for it and ends it.

    Args:
        url: Where to listen.
        log: Gets its output.
        token: The data token.
        settings: More sections, such as `reward={"workers": 2}`.
    """
    settings = {"model": {"path": "x"}, "data": {"train": "x"}} | settings
    settings["reward"] = {"url": url} | settings.get("reward", {})
    with log.open("a") as out:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(settings)],
            env={**os.environ, "SGG_DATA_TOKEN": token, "OMP_NUM_THREADS": "1"},
            stderr=out,
        )


@contextmanager
def running(log: Path, **settings: Any) -> Iterator[tuple[str, Process]]:
    """Its address and process while it runs and is ready; killed at the end."""
    url = f"http://127.0.0.1:{free_port()}"
    process = start(url, log, **settings)
    try:
        wait_ready(url, process, log)
        yield url, process
    finally:
        process.kill()
        process.wait()
