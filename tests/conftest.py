"""Shared by all tests: one real Redis a session, and a run name of its own for a test."""

import gc
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.host.imports import end_at_once
from services.host.ports import free_port
from services.redis.client import redis_answers
from services.redis.keys import RunKeys
from services.redis.server import redis_server_command

_ENDING = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
RedisStarter = Callable[[Path, int], "subprocess.Popen[bytes]"]


def _start(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    with (folder / "log").open("a") as log:
        server = subprocess.Popen(redis_server_command(folder, port), stdout=log, stderr=log)
    for _ in range(1000):
        if redis_answers(f"redis://127.0.0.1:{port}/0"):
            return server
        time.sleep(0.02)
    server.kill()
    raise AssertionError(f"redis did not come up:\n{(folder / 'log').read_text()[-2000:]}")


def pytest_configure() -> None:
    """A shell starts its background jobs deaf to Ctrl-C, and what they start is too."""
    gc.disable()  # what the tests import stays
    end_at_once()
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_IGN:
            handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """From here on garbage is collected of what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def start_redis() -> RedisStarter:
    """Starts a real server and waits for it; the caller ends it. The folder keeps its data."""
    return _start


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server of this session's own, on a free port."""
    port = free_port()
    server = _start(tmp_path_factory.mktemp("redis"), port)
    yield f"redis://127.0.0.1:{port}/0"
    server.kill()
    server.wait()


@pytest.fixture
def run_keys() -> RunKeys:
    """Keys of a run that no other test uses."""
    return RunKeys(f"test-{uuid.uuid4().hex[:12]}")
