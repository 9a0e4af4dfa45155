"""`task.sh` as a rank of the trainer that shares its GPU with a rollout server."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from deploy.slurm.site import DEPLOY_FOLDER
from services.host.environment import child_environment
from services.host.ports import free_port
from services.http.app import create_app
from tests.processes import wait_for

LOADING = "the model is loading"
QUARANTINED = "a weight update failed, waiting for one that works: no memory"


class Server:
    """Says of itself what it is told to."""

    def __init__(self) -> None:
        self.port = free_port()
        self.reason: str | None = LOADING
        self.asked = 0

    def readiness(self) -> str | None:
        self.asked += 1
        return self.reason


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()
    app = create_app(title="rollout", readiness=told.readiness, body_limit_bytes=1000)
    config = uvicorn.Config(app, host="127.0.0.1", port=told.port, log_level="error")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    yield told
    running.should_exit = True
    thread.join()


@contextmanager
def rank(
    folder: Path, port: int, limit_s: int = 60, **more: str
) -> "Iterator[subprocess.Popen[str]]":
    """Rank 1 of a node, whose server has the second port; `sgg-rl` leaves a file."""
    (folder / "slurm").mkdir()
    command = folder / "sgg-rl"
    command.write_text('#!/bin/sh\necho "$@" >started\n')
    command.chmod(0o700)
    environment = child_environment(
        PATH=f"{folder}:/usr/bin:/bin",
        TMPDIR=str(folder),
        SGG_JOB_FOLDER=str(folder),
        SGG_JOB_WORKDIR=str(folder),
        SGG_JOB_SUFFIX="",
        SGG_JOB_PORT=str(port - 1),
        SGG_JOB_SERVER_WAIT_S=str(limit_s),
        SGG_JOB_SERVER_GPUS="2",
        SLURMD_NODENAME="127.0.0.1",
        SLURM_LOCALID="3",
        SLURM_PROCID="0",
        SLURM_NTASKS="2",
        SLURM_NTASKS_PER_NODE="2",
        **more,
    )
    with (folder / "log").open("w") as log:
        task = ["bash", str(DEPLOY_FOLDER / "task.sh"), "trainer"]
        process = subprocess.Popen(task, env=environment, stdout=log, stderr=log, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("reason", [None, QUARANTINED])
def test_it_starts_when_the_server_has_loaded(
    tmp_path: Path, server: Server, reason: str | None
) -> None:
    with rank(tmp_path, server.port) as process:
        wait_for("two questions", lambda: server.asked > 1)
        assert not (tmp_path / "started").exists()
        server.reason = reason
        assert process.wait(30) == 0
    config = tmp_path / "config.toml"
    assert (tmp_path / "started").read_text() == f"train --config {config} --resume\n"


def test_a_server_that_never_comes_does_not_hold_it(tmp_path: Path) -> None:
    with rank(tmp_path, free_port(), limit_s=1, SGG_JOB_ALLOW_CHANGES="1") as process:
        assert process.wait(30) == 0
    assert (tmp_path / "started").read_text().endswith(" --resume --allow-changes\n")
    assert "starting without it" in (tmp_path / "log").read_text()


def test_told_to_stop_it_ends_as_one_that_kept_its_work(tmp_path: Path, server: Server) -> None:
    with rank(tmp_path, server.port) as process:
        wait_for("a question", lambda: server.asked > 0)
        process.terminate()
        assert process.wait(30) == 0
    assert (tmp_path / "slurm" / "trainer.code").read_text() == "75\n"
    assert not (tmp_path / "started").exists()
