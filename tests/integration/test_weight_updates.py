"""Weight updates of a server's process: uploads over HTTP, and kills at every edge of an update."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import httpx
import pytest
from safetensors.numpy import save

from services.errors import ConflictError, EngineError, InvalidInputError, NotFoundError, SggError
from services.host.environment import child_environment
from services.host.ports import free_port
from services.http.clients.rollout import RolloutClient
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.registry import Registry
from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.rollouts import RolloutRequest
from services.schemas.weights import Encoding, StageRequest
from services.settings import Settings, dump_settings
from tests.integration.stalling_server import EDGES, FAILS
from tests.shm_versions import ShmRun, ShmVersion, tensors_of
from weight_sync.transports.uploads.spool import spool_folder

ASKED = RolloutRequest(
    messages=[ChatMessage(role="user", content=[TextPart(text="What is there?")])],
    sampling=Sampling(n=4),
)
ADMIN = {"Authorization": "Bearer admin"}
NEVER = 10**6
"""A version that is not published: nothing stalls."""


class Server:
    """A process that can stall in an update."""

    def __init__(self, folder: Path, run: str, redis_url: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.settings = Settings.model_validate(
            {
                "run": {"name": run, "root": str(folder)},
                "model": {"path": "no-such-model", "box_space": "relative_1000"},
                "data": {"train": "unused"},
                "redis": {"url": redis_url},
                "rollout": {"url": self.url, "engine": "fake"},
            }
        )
        self.marker = folder / "stalled"
        self.log = folder / "log"
        self._config = folder / "run.toml"
        self._config.write_text(dump_settings(self.settings))
        self.process: subprocess.Popen[bytes]

    def start(self, edge: str = EDGES[0], policy_version: int = NEVER) -> None:
        where = (str(self._config), str(self.marker), edge, str(policy_version))
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.stalling_server", *where],
                stdout=log,
                stderr=log,
                env=child_environment(SGG_DATA_TOKEN="data", SGG_ADMIN_TOKEN="admin"),
            )
        deadline = time.monotonic() + 60
        while not self._is_ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def client(self) -> RolloutClient:
        return RolloutClient(self.url, token="data", admin_token="admin", timeout_s=30)

    def put(
        self, content: bytes | Iterator[bytes], path: str = "1/1", token: str = "admin"
    ) -> httpx.Response:
        return httpx.put(
            f"{self.url}/v1/weights/files/{path}",
            content=content,
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
        )

    def spooled(self) -> list[str]:
        return sorted(path.name for path in spool_folder(self.settings).glob("*"))

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def server(tmp_path: Path, shm_run: ShmRun, redis_url: str) -> Iterator[Server]:
    server = Server(tmp_path, shm_run.name, redis_url)
    server.start()
    yield server
    server.process.kill()
    server.process.wait()


def by_http(version: ShmVersion) -> StageRequest:
    return version.stage.model_copy(update={"transport": "http"})


async def test_curl_uploads_a_version(server: Server, shm_run: ShmRun) -> None:
    version = shm_run.write(1)
    where = f"{server.url}/v1/weights/files/1/1"
    header = f"Authorization: {ADMIN['Authorization']}"
    curl = ["curl", "-sS", "--noproxy", "*", "-f", "-T", str(version.file), "-H", header, where]
    process = await asyncio.create_subprocess_exec(*curl, stdout=subprocess.PIPE)
    assert b'"policy_version":0' in (await process.communicate())[0]
    version.file.unlink()
    async with server.client() as client:
        await client.stage(by_http(version))
        assert (await client.commit(version.commit)).policy_version == 1
        answer_of = await client.rollouts(ASKED)
    assert {s.policy_version for c in answer_of.completions for s in c.policy_versions} == {1}


async def test_sigterm_removes_the_uploads(server: Server, shm_run: ShmRun) -> None:
    assert server.put(shm_run.write(1).file.read_bytes()).status_code == 200
    assert server.spooled() == ["1-1.safetensors"]
    server.process.terminate()
    assert server.process.wait(30) == 0, server.log.read_text()
    assert not spool_folder(server.settings).exists()


async def test_uploads_that_are_refused(server: Server, shm_run: ShmRun) -> None:
    good = shm_run.write(1).file.read_bytes()
    for token in ("data", "wrong", "no-token"):
        assert server.put(good, token=token).status_code == 401
    assert server.put(good[:-1]).status_code == 422
    assert server.put(b"\x80\x04not safetensors at all").status_code == 422
    for path in ("1/-1", "1/x", "-1/1", "1/99999999999999999999", "1/1e3"):
        assert server.put(good, path).status_code == 422, path
    for path in ("1/..", "../stage", "..%2f..%2fetc/passwd", "1/1/2", "%2e%2e/1", "1"):
        assert server.put(good, path).status_code in (404, 405, 422), path
    reader, writer = await begin_upload(server, num_bytes=10**15)
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    assert server.spooled() == []


async def begin_upload(
    server: Server, num_bytes: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send the head of an upload of that many bytes."""
    port = int(server.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        "PUT /v1/weights/files/1/1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer admin\r\n"
        f"Content-Length: {num_bytes}\r\n\r\n"
    )
    writer.write(head.encode())
    return reader, writer


async def test_an_upload_that_breaks_off_leaves_nothing(server: Server, shm_run: ShmRun) -> None:
    version = shm_run.write(1)
    content = version.file.read_bytes()
    _, writer = await begin_upload(server, num_bytes=len(content))
    writer.write(content[:60])
    await writer.drain()
    await until(lambda: server.spooled() == ["upload.draft"])
    writer.transport.abort()
    await until(lambda: server.spooled() == [])
    async with server.client() as client:
        with pytest.raises(NotFoundError, match="was not uploaded"):
            await client.stage(by_http(version))
    assert server.put(content).status_code == 200


async def test_bad_updates_are_refused_and_the_old_version_serves_on(
    server: Server, shm_run: ShmRun
) -> None:
    first, second = shm_run.write(1), shm_run.write(2)
    async with server.client() as client:
        await client.stage(first.stage)
        served = await client.commit(first.commit)
        assert await client.commit(first.commit) == served
        with pytest.raises(ConflictError, match="not staged"):
            await client.commit(second.commit)
        with pytest.raises(ConflictError, match="not later"):
            await client.stage(shm_run.write(0).stage)
        server.put(save(tensors_of(3)), "1/2")
        with pytest.raises(InvalidInputError, match="blake3"):
            await client.stage(by_http(second))
        with pytest.raises(InvalidInputError, match="no GPU"):
            await client.stage(second.stage.model_copy(update={"transport": "ipc"}))
        answer = await client.rollouts(ASKED)
        assert await client.policy() == served
    assert {s.policy_version for c in answer.completions for s in c.policy_versions} == {1}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while True:
            if condition():
                return
            await asyncio.sleep(0.02)


class Sampler:
    """A client that asks all the time; `seen` has the versions of what came, group by group."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.seen: list[set[int]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._ask())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def more(self, count: int = 3) -> None:
        wanted = len(self.seen) + count
        await until(lambda: len(self.seen) >= wanted)

    async def _ask(self) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            while True:
                try:
                    answer = await http.post(
                        f"{self._server.url}/v1/rollouts",
                        content=ASKED.model_dump_json(),
                        headers={
                            "Authorization": "Bearer data",
                            "Content-Type": "application/json",
                        },
                    )
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
                    continue
                if answer.status_code != 503:  # it is starting, or stopping
                    assert answer.status_code == 200, answer.text
                    spans = [s for c in answer.json()["completions"] for s in c["policy_versions"]]
                    self.seen.append({span["policy_version"] for span in spans})


async def test_a_server_that_cannot_load_is_out_of_service_until_it_can(
    server: Server, shm_run: ShmRun
) -> None:
    server.kill()
    server.start(FAILS, 1)
    version = shm_run.write(1)
    content = version.file.read_bytes()
    long = ASKED.model_copy(update={"sampling": Sampling(n=64)}).model_dump_json()
    data = {"Authorization": "Bearer data", "Content-Type": "application/json"}
    async with (
        server.client() as client,
        httpx.AsyncClient(base_url=server.url, headers=data, trust_env=False, timeout=60) as http,
    ):
        await client.stage(version.stage)
        asked = [asyncio.create_task(http.post("/v1/rollouts", content=long)) for _ in range(20)]
        short = ASKED.model_copy(update={"sampling": Sampling(max_tokens=1)})
        await http.post("/v1/rollouts", content=short.model_dump_json())  # groups take turns
        with pytest.raises(EngineError, match="meta device"):
            await client.commit(version.commit)
        answers = [await task for task in asked]
        ended = [answer for answer in answers if answer.status_code != 200]
        assert ended, "some were in flight"
        assert all((a.status_code, a.json()["retryable"]) == (503, True) for a in ended)
        ready = await http.get("/readyz")
        assert ready.status_code == 503
        assert "version 1 of incarnation 1 could not be loaded" in ready.json()["reason"]
        assert (await http.post("/v1/rollouts", content=long)).status_code == 503
        assert (await client.policy()).state == "quarantined"
        version.file.unlink()
        assert server.put(content).status_code == 200
        await client.stage(by_http(version))
        await client.commit(version.commit)
        assert (await http.get("/readyz")).status_code == 200
        answer = await client.rollouts(ASKED)
    assert {s.policy_version for c in answer.completions for s in c.policy_versions} == {1}


@pytest.mark.parametrize("encoding", get_args(Encoding))
@pytest.mark.parametrize("edge", EDGES)
async def test_a_kill_in_an_update(
    tmp_path: Path,
    shm_run: ShmRun,
    redis_url: str,
    run_keys: RunKeys,
    edge: str,
    encoding: Encoding,
) -> None:
    """No completion carries a version that was not served, before and after."""
    shm_run.encoding = encoding
    server = Server(tmp_path, shm_run.name, redis_url)
    server.start(edge, 2)
    redis = connect(redis_url)
    registry = Registry(redis, run_keys)
    first, second = shm_run.write(1), shm_run.write(2)
    sampler = Sampler(server)
    try:
        async with sampler.running(), server.client() as client:
            await sampler.more()
            await client.stage(first.stage)
            await registry.publish_policy(first.record, first.manifest)
            await client.commit(first.commit)
            await sampler.more()
            assert sampler.seen[-1] == {1}
            before = len(sampler.seen)
            update = asyncio.create_task(_update(client, registry, second))
            await until(server.marker.exists)
            if edge in ("before stage", "staged"):
                await sampler.more()
                assert (await client.policy()).state == "ready"
            server.kill()
            with pytest.raises(SggError):
                await update
            assert all(versions == {1} for versions in sampler.seen[before:])
            killed = len(sampler.seen)
            server.start()
            final = 2 if edge in ("in the load", "before resume") else 1
            await until_serving(client, final)
            caught_up = len(sampler.seen)
            await sampler.more(5)
        # What was asked for before it had caught up is of the weights that it started with.
        assert set().union(*sampler.seen[killed:]) <= {0, final}
        assert all(versions == {final} for versions in sampler.seen[caught_up + 1 :])
    finally:
        server.kill()
        await redis.aclose()


async def _update(client: RolloutClient, registry: Registry, version: ShmVersion) -> None:
    await client.stage(version.stage)
    await registry.publish_policy(version.record, version.manifest)
    await client.commit(version.commit)


async def until_serving(client: RolloutClient, policy_version: int) -> None:
    async with asyncio.timeout(30):
        while True:
            if (await client.policy()).policy_version == policy_version:
                return
            await asyncio.sleep(0.02)
