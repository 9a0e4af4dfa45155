"""Redis with a password and on several addresses, and servers that a run must not use."""

import asyncio
import logging
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from planning.preflight.check import CheckResult
from planning.preflight.services import service_checks
from services.errors import SettingsError
from services.host.ports import free_port, listen
from services.redis.check import check_redis
from services.redis.client import connect, redis_answers
from services.redis.keys import RunKeys
from services.redis.queue import RedisQueue
from services.settings import RedisSettings, Settings
from services.settings.secrets import ensure_secrets, read_secret
from tests.processes import ROOT, sgg_process, wait_for


@dataclass
class Served:
    redis: RedisSettings
    arguments: list[str]
    """With which a command finds it."""
    pid: int


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`sgg-rl serve redis` on a second address of this machine, with a password."""
    folder = tmp_path_factory.mktemp("served")
    password = ensure_secrets(folder / "r/secrets").redis_password
    redis = RedisSettings(url=f"redis://127.0.0.2:{free_port()}/0", password_file=password)
    overrides = [f"run.root={folder}", "run.name=r", f"redis.url={redis.url}"]
    arguments = [part for text in overrides for part in ("--set", text)]
    with_password = [*arguments, "--set", f"redis.password_file={password}"]
    log = folder / "log"
    with sgg_process(log, "serve", "redis", *with_password) as process:
        wait_for("redis", lambda: redis_answers(redis) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Served(redis, arguments, process.pid)


def sgg(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cli.main", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


async def length(redis: RedisSettings) -> int:
    client = connect(redis)
    try:
        return await RedisQueue(client, RunKeys("r")).length("rollouts")
    finally:
        await client.aclose()


def test_the_password_opens_both_addresses_and_is_not_among_the_arguments(served: Served) -> None:
    assert asyncio.run(length(served.redis)) == 0
    here = served.redis.model_copy(update={"url": served.redis.url.replace("0.2", "0.1")})
    assert asyncio.run(length(here)) == 0
    assert served.redis.password is not None
    assert served.redis.password not in Path(f"/proc/{served.pid}/cmdline").read_text()


def test_a_wrong_or_missing_password_is_one_line_with_the_remedy(
    served: Served, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"asks for a password: .*redis\.password_file"):
        asyncio.run(length(RedisSettings(url=served.redis.url)))
    other = ensure_secrets(tmp_path / "secrets").redis_password
    wrong = RedisSettings(url=served.redis.url, password_file=other)
    with pytest.raises(SettingsError, match=r"redis\.password_file is not the one") as caught:
        asyncio.run(length(wrong))
    assert read_secret(other) not in caught.value.message
    asked = [*served.arguments, "--set", f"redis.password_file={other}"]
    for command in (["status"], ["serve", "rollout", "--set", "rollout.engine=fake"]):
        ended = sgg(
            *command, "-c", "demo", *asked, "--set", f"rollout.url=http://127.0.0.1:{free_port()}"
        )
        assert ended.returncode == 2, ended.stderr
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("sgg-rl: Redis at redis://127.0.0.2"), ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_second_server_on_its_port_says_whose_it_is(served: Served) -> None:
    file = served.redis.password_file
    ended = sgg("serve", "redis", *served.arguments, "--set", f"redis.password_file={file}")
    assert ended.returncode == 2
    assert f"process {served.pid} (" in ended.stderr
    assert ended.stderr.count("\n") == 1


class OldRedis(socketserver.StreamRequestHandler):
    """Says of itself what Redis 6.0 does, which cannot be had here; everything else is `OK`."""

    def handle(self) -> None:
        while head := self.rfile.readline():
            words = [self._word() for _ in range(int(head[1:]))]
            info = b"redis_version:6.0.16\r\naof_enabled:0\r\nmaxmemory_policy:allkeys-lru\r\n"
            answers = {b"INFO": b"$%d\r\n%s\r\n" % (len(info), info), b"PING": b"+PONG\r\n"}
            self.wfile.write(answers.get(words[0].upper(), b"+OK\r\n"))

    def _word(self) -> bytes:
        num_bytes = int(self.rfile.readline()[1:])
        return self.rfile.read(num_bytes + 2)[:-2]


@contextmanager
def old_redis() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), OldRedis) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


def test_an_old_version_is_refused() -> None:
    with old_redis() as url:
        ended = sgg("status", "-c", "demo", "--set", f"redis.url={url}")
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr == (
        f"sgg-rl: Redis at {url} is version 6.0.16: 7.0 or later is needed, or any Valkey; "
        "`sgg-rl serve redis` starts one\n"
    )


def test_the_doctor_says_who_answers_and_who_has_a_port(served: Served) -> None:
    def results(redis: RedisSettings, port: int) -> list[CheckResult]:
        tree = {
            "run": {"name": "r"},
            "model": {"path": "none", "box_space": "relative_1000"},
            "data": {"train": "none"},
            "redis": redis.model_dump(),
            "reward": {"url": f"http://127.0.0.1:{port}"},
            "rollout": {"url": f"http://127.0.0.1:{free_port()}"},
        }
        return service_checks(Settings.model_validate(tree))[0]

    with listen("127.0.0.1", 0, name="a stranger") as stranger:
        redis, reward, rollout = results(served.redis, stranger.getsockname()[1])
    assert (redis.state, reward.state, rollout.state) == ("ok", "missing", "info")
    assert "version 7." in redis.detail
    assert f"process {os.getpid()} (" in reward.detail
    open_redis = RedisSettings(url=served.redis.url)
    assert "asks for a password" in results(open_redis, free_port())[0].detail
    with old_redis() as url:
        found = results(RedisSettings(url=url), free_port())[0]
    assert (found.state, "6.0.16" in found.detail) == ("missing", True)


async def test_a_server_that_may_lose_work_is_warned_of(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(redis_url)
    with caplog.at_level(logging.WARNING, "services.redis.check"):
        await check_redis(client)
        assert not caplog.messages
        await client.config_set("maxmemory-policy", "allkeys-lru")
        await client.config_set("appendonly", "no")
        try:
            await check_redis(client)
        finally:
            await client.config_set("maxmemory-policy", "noeviction")
            await client.config_set("appendonly", "yes")
            await client.aclose()
    assert len(caplog.messages) == 2
    assert "appendonly yes" in caplog.messages[0]
    assert "allkeys-lru" in caplog.messages[1]
