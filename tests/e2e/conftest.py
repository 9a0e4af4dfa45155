"""One real rollout server, vLLM and all, for the whole session: it takes half a minute to start."""

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rollout_service.http.app import make_engine
from scene_data.toy.scenes import make_toy
from services.host.ports import free_port
from services.settings import Settings, dump_settings
from tests.live_servers import LiveServer, serving
from tests.processes import sgg_process, wait_ready

ROOT = Path(__file__).parents[2]
START_S = 400.0
"""The first start on a busy machine of two cores."""


def needs_gpus(number: int) -> None:
    """Skip where a GPU samples, and there are fewer; on a CPU workers are processes."""
    if torch.cuda.is_available() and torch.cuda.device_count() < number:
        pytest.skip(f"{number} GPUs are wanted")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that train come last: they leave the session's server with another policy."""
    items.sort(key=lambda item: "training_services" in getattr(item, "fixturenames", ()))


@dataclass(frozen=True)
class RunningServer:
    """A rollout server that is ready."""

    url: str
    model: Path
    redis_url: str
    settings: Settings
    log: Path
    process: "subprocess.Popen[bytes]"


@dataclass(frozen=True)
class TrainingServices:
    """What a run needs beside itself."""

    server: RunningServer | LiveServer
    reward_url: str
    toy: Path
    """Folder of toy scenes."""


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The shipped start of the toy demo."""
    return ROOT / "assets/toy-start"


@pytest.fixture(scope="session")
def rollout_server(
    tiny_model: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """The session's own."""
    with running_server(tiny_model, redis_url, tmp_path_factory.mktemp("rollout")) as server:
        yield server


@pytest.fixture(scope="session")
def training_services(
    rollout_server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrainingServices]:
    """The session's rollout server, a reward service, and toy scenes."""
    folder = tmp_path_factory.mktemp("training")
    make_toy(folder / "toy", num_train=64, num_heldout=4)
    url = f"http://127.0.0.1:{free_port()}"
    base = rollout_server.settings.model_dump(mode="json", exclude_none=True)
    config, log = folder / "reward.toml", folder / "reward.log"
    config.write_text(dump_settings(Settings.model_validate({**base, "reward": {"url": url}})))
    with sgg_process(log, "serve", "reward", "-c", str(config)) as process:
        wait_ready(url, process, log)
        yield TrainingServices(rollout_server, url, folder / "toy")


@contextmanager
def running_server(
    model: Path, redis_url: str, folder: Path, **sections: dict[str, Any]
) -> Iterator[RunningServer]:
    """Started as a user starts it; ended by SIGTERM, unless the test has ended it.

    Args:
        model: Folder of the model.
        redis_url: Of the tests' Redis.
        folder: For its settings and its log.
        sections: More settings, by section.
    """
    settings = server_settings(model, redis_url, folder, **sections)
    config, log = folder / "run.toml", folder / "log"
    config.write_text(dump_settings(settings))
    with sgg_process(log, "serve", "rollout", "--config", str(config)) as process:
        wait_ready(settings.rollout.url, process, log, timeout_s=START_S)
        yield RunningServer(settings.rollout.url, model, redis_url, settings, log, process)
        if process.poll() is None:
            process.terminate()
            assert process.wait(60) == 0, log.read_text()[-2000:]


@contextmanager
def server_here(
    model: Path, redis_url: str, folder: Path, **sections: dict[str, Any]
) -> Iterator[LiveServer]:
    """As `running_server`, in this process, which has imported vLLM: a third of a start."""
    settings = server_settings(model, redis_url, folder, **sections)
    engine = make_engine(settings)
    with workers_that_sleep(), serving(settings, engine) as server:
        yield server


@contextmanager
def workers_that_sleep() -> Iterator[None]:
    """Workers that vLLM forks meanwhile sleep while they wait.

    Its own spin for a second after each message, and take the cores that others compute on. On
    busy cores some of the calls that wake a sleeper are lost, and vLLM has it look by itself after
    5 s: here sooner.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shm_broadcast.SpinCondition.__init__, "__defaults__", (0.0,))
        patch.setattr(shm_broadcast, "SHM_READER_RECHECK_INTERVAL_MS", 10)
        yield


def server_settings(
    model: Path, redis_url: str, folder: Path, **sections: dict[str, Any]
) -> Settings:
    """Settings of a small server; the arguments are those of `running_server`."""
    return Settings.model_validate(
        {
            "run": {"name": f"e2e-{uuid.uuid4().hex[:8]}", "root": str(folder)},
            # Other limits than the checkpoint's own, so that a test can see which ones hold.
            "model": {
                "path": str(model),
                "box_space": "relative_1000",  # the toy start's, whose family writes pixels
                "box_space_override": True,
                "dtype": "float32",
                "max_pixels": 224 * 224,
            },
            "data": {"train": "unused", "template": "toy"},
            "redis": {"url": redis_url},
            "rollout": {
                "url": f"http://127.0.0.1:{free_port()}",
                "max_num_seqs": 32,
                "max_model_len": 1024,
                "kv_cache_gib": 0.25,
                "gpu_memory_utilization": 0.3,  # of `tests/gpu`: two servers and the tests share it
                "enforce_eager": True,
                **sections.pop("rollout", {}),
            },
            **sections,
        }
    )
