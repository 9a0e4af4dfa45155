"""One real rollout server, vLLM and all, for the whole session: it takes half a minute to start."""

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from services.ports import free_port
from services.settings import Settings, child_environment, dump_settings

ROOT = Path(__file__).parents[2]
START_S = 400.0
"""The first start on a busy machine of two cores."""


@dataclass(frozen=True)
class RunningServer:
    """A rollout server that is ready."""

    url: str
    model: Path
    redis_url: str
    settings: Settings
    log: Path


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The shipped toy model, else one with random weights."""
    shipped, made = ROOT / "assets/toy-start", ROOT / "build/tiny-random"
    if (shipped / "config.json").is_file():
        return shipped
    if not (made / "config.json").is_file():
        from scene_data.tiny_model import make_tiny_model

        make_tiny_model(made)
    return made


@pytest.fixture(scope="session")
def rollout_server(
    tiny_model: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Started as a user starts it; killed at the end, if a SIGTERM does not end it."""
    folder = tmp_path_factory.mktemp("rollout")
    settings = _settings(tiny_model, redis_url, folder)
    config, log = folder / "run.toml", folder / "log"
    config.write_text(dump_settings(settings))
    with log.open("w") as out:
        command = [sys.executable, "-m", "cli.main", "serve", "rollout", "--config", str(config)]
        environment = child_environment(OMP_NUM_THREADS="1")
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=environment)
    try:
        _wait_until_ready(settings.rollout.url, process, log)
        yield RunningServer(settings.rollout.url, tiny_model, redis_url, settings, log)
        process.terminate()
        assert process.wait(60) == 0, log.read_text()[-2000:]
    finally:
        process.kill()
        process.wait()


def _settings(model: Path, redis_url: str, folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": f"e2e-{uuid.uuid4().hex[:8]}", "root": str(folder)},
            "model": {"path": str(model), "dtype": "float32"},
            "data": {"train": "unused"},
            "redis": {"url": redis_url},
            "rollout": {
                "url": f"http://127.0.0.1:{free_port()}",
                "max_num_seqs": 32,
                "max_model_len": 1024,
                "kv_cache_gib": 0.25,
                "enforce_eager": True,
            },
        }
    )


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"it ended:\n{log.read_text()[-4000:]}"
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"not ready in {START_S:g} s:\n{log.read_text()[-4000:]}")
