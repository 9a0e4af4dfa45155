"""The rollout service in a process of its own: real uvicorn, real Redis, the fake engine."""

import asyncio
import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from services.errors import ConflictError, InvalidInputError, NotFoundError, UnauthorizedError
from services.host.environment import child_environment
from services.host.ports import free_port, is_listening
from services.http.clients.rollout import RolloutClient
from services.http.proof import proof
from services.images import ImageStore
from services.redis.client import connect
from services.redis.keys import PROMPT_LANES, RunKeys, prompt_stream
from services.redis.queue import RedisQueue
from services.redis.registry import Registry
from services.schemas.common import ChatMessage, ImagePart, Sampling, TextPart
from services.schemas.prompts import PromptGroup
from services.schemas.rollouts import InlineImage, RolloutGroup, RolloutRequest
from services.schemas.scene_graphs import ImageGraph, SceneGraphRequest
from services.schemas.weights import StageRequest
from services.settings import Settings, dump_settings
from tests.shm_versions import ShmRun, tensors_of
from tests.tagged_pictures import encoded

IMAGE = b"the fake engine decodes nothing"
MESSAGES = [ChatMessage(role="user", content=[ImagePart(), TextPart(text="What is there?")])]
TEXT_ONLY = [ChatMessage(role="user", content=[TextPart(text="What is there?")])]


class Server:
    """A rollout server's process."""

    def __init__(self, folder: Path, run: str, redis_url: str, *, engine: str = "fake") -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.settings = Settings.model_validate(
            {
                "run": {"name": run, "root": str(folder)},
                "model": {
                    "path": "no-such-model",
                    "dtype": "float32",
                    "box_space": "relative_1000",
                },
                "data": {"train": "unused"},
                "redis": {"url": redis_url, "lease_s": 3},
                "rollout": {"url": self.url, "engine": engine, "fake_tokens_per_s": 20_000},
            }
        )
        self.log = folder / f"{self.url[-5:]}.log"
        self._config = folder / f"{self.url[-5:]}.toml"
        self._config.write_text(dump_settings(self.settings))
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        code = (
            "import sys; from pathlib import Path; from rollout_service.http.app import serve; "
            "from services.settings import load_settings; serve(load_settings(Path(sys.argv[1])))"
        )
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, str(self._config)],
                stdout=log,
                stderr=log,
                env=child_environment(SGG_DATA_TOKEN="data", SGG_ADMIN_TOKEN="admin"),
            )
        return self.process

    def wait_until_ready(self) -> "Server":
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.get("/readyz").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready:\n{self.log.read_text()}")

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers(), trust_env=False, timeout=10)

    @staticmethod
    def headers(token: str = "admin") -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    def client(self, token: str = "data", admin_token: str = "admin") -> RolloutClient:
        return RolloutClient(self.url, token=token, admin_token=admin_token, timeout_s=30)


@pytest.fixture
def server(tmp_path: Path, shm_run: ShmRun, redis_url: str) -> Iterator[Server]:
    server = Server(tmp_path, shm_run.name, redis_url).wait_until_ready()
    yield server
    server.process.kill()
    server.process.wait()


def request(**changes: Any) -> RolloutRequest:
    fields = {
        "messages": MESSAGES,
        "images": [{"data": base64.b64encode(IMAGE).decode()}],
        "sampling": Sampling(n=3),
    }
    return RolloutRequest.model_validate(fields | changes)


async def test_a_group_over_http(server: Server) -> None:
    ref = ImageStore(server.settings.run.files.images).put(IMAGE)
    async with server.client() as client:
        by_data = await client.rollouts(request())
        by_ref = await client.rollouts(request(images=[ref]))
        info = await client.policy()
    assert [c.text for c in by_data.completions] == [c.text for c in by_ref.completions]
    assert len(by_data.completions) == 3
    assert (info.server_id, info.state, info.checksum) == (by_data.server_id, "ready", None)


async def test_stage_commit_and_abort_over_http(server: Server, shm_run: ShmRun) -> None:
    first, second = shm_run.write(1), shm_run.write(2)
    async with server.client() as client:
        with pytest.raises(ConflictError):
            await client.commit(first.commit)
        assert (await client.stage(first.stage)).staged_version == 1
        info = await client.commit(first.commit)
        assert (info.policy_version, info.checksum) == (1, first.checksum)
        assert await client.commit(first.commit) == info
        answer = await client.rollouts(request())
        assert answer.completions[0].policy_versions[0].policy_version == 1
        picture = InlineImage(data=base64.b64encode(encoded(Image.new("RGB", (9, 9)))).decode())
        (graph,) = (await client.scene_graphs(SceneGraphRequest(images=[picture]))).graphs
        assert isinstance(graph, ImageGraph)
        assert graph.policy_versions == (1, 1)
        await client.stage(second.stage)
        assert (await client.abort(second.commit)).staged_version is None
        with pytest.raises(ConflictError):
            await client.commit(second.commit)
        with pytest.raises(ConflictError):
            await client.abort(first.commit)
        assert (await client.policy()).policy_version == 1


async def test_bad_versions_over_http(server: Server, shm_run: ShmRun) -> None:
    version = shm_run.write(1)
    damaged = shm_run.write(2)
    damaged.file.write_bytes(version.file.read_bytes())
    incomplete = shm_run.write(3)
    shm_run.write(3, arrays={"embed.weight": tensors_of(3)["embed.weight"]})
    gone = shm_run.write(4)
    gone.file.unlink()
    async with server.client() as client:
        with pytest.raises(InvalidInputError, match="checksum"):
            await client.stage(StageRequest(manifest=version.manifest, checksum="0" * 64))
        with pytest.raises(InvalidInputError, match="blake3"):
            await client.stage(damaged.stage)
        with pytest.raises(InvalidInputError, match=r"norm\.weight is not in the file"):
            await client.stage(incomplete.stage)
        with pytest.raises(NotFoundError):
            await client.stage(gone.stage)
        info = await client.policy()
        assert (info.policy_version, info.staged_version, info.state) == (0, None, "ready")
        assert len((await client.rollouts(request())).completions) == 3


async def test_an_update_while_groups_are_in_flight(server: Server, shm_run: ShmRun) -> None:
    version = shm_run.write(1)
    async with server.client() as client:
        running = [asyncio.create_task(client.rollouts(request())) for _ in range(40)]
        await client.stage(version.stage)
        await client.commit(version.commit)
        for task in running:
            for completion in (await task).completions:
                spans = completion.policy_versions
                assert [span.policy_version for span in spans] in ([0], [1], [0, 1])
                assert spans[-1].end == len(completion.token_ids)


TAKE_MESSAGES = (
    *("rollouts", "scene-graphs"),
    *(f"weights/{name}" for name in ("stage", "commit", "abort", "pass-on")),
)
NONSENSE = [
    b"",
    b"nonsense",
    b"[]",
    b"null",
    b'{"unknown": 1}',
    b'{"sampling": {"temperature": NaN}}',
    b'{"policy_version": 1e400, "checksum": "x"}',
    b"[" * 100_000,
    b"{" + b",".join(b'"k%d":0' % i for i in range(600_000)) + b"}",
    b"[" + b"[]," * 2_000_000 + b"[]]",
    b"\xff\xfe",
    b'{"transport": "../../etc/passwd", "manifest": {"tensors": {}}, "checksum": 3}',
]


async def test_nonsense_gets_problem_details_and_the_server_lives_on(server: Server) -> None:
    headers = server.headers() | {"Content-Type": "application/json"}
    async with httpx.AsyncClient(trust_env=False, base_url=server.url) as http:
        for path in TAKE_MESSAGES:
            for body in NONSENSE:
                answer = await http.post(f"/v1/{path}", content=body, headers=headers)
                assert answer.status_code in (400, 413, 422), (path, body[:80])
                assert answer.headers["content-type"] == "application/problem+json"
        assert (await http.get("/readyz")).status_code == 200
    async with server.client() as client:
        assert len((await client.rollouts(request())).completions) == 3


async def test_requests_that_make_no_sense(server: Server) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"images": [{"data": "http://127.0.0.1/x.png"}]}, "never fetched"),
        ({"images": [{"data": "file:///etc/passwd"}]}, "never fetched"),
        ({"images": []}, "1 image parts and 0"),
        ({"messages": TEXT_ONLY}, "0 image parts and 1"),
        ({"messages": [MESSAGES[0], MESSAGES[0]]}, "2 image parts"),
    ]
    async with server.client() as client:
        for changes, message in bad:
            with pytest.raises(InvalidInputError, match=message):
                await client.rollouts(request(**changes))


async def test_a_body_over_the_limit_is_refused_before_it_is_sent(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/rollouts HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer data\r\n"
        b"Content-Length: 8388609\r\n\r\n"
    )
    status = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    assert b" 413 " in status


async def test_an_engine_without_openai_s_api_says_so(server: Server) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    async with httpx.AsyncClient(trust_env=False, base_url=server.url) as http:
        for answer in (
            await http.get("/v1/models", headers=server.headers("data")),
            await http.post("/v1/chat/completions", json=body, headers=server.headers("data")),
        ):
            assert answer.status_code == 404
            assert "rollout.engine" in answer.json()["error"]["message"]
        assert (await http.get("/v1/models")).status_code == 401
        for content in NONSENSE:
            answer = await http.post(
                "/v1/chat/completions",
                content=content,
                headers=server.headers("data") | {"Content-Type": "application/json"},
            )
            assert answer.status_code in (400, 413), content[:80]
            assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_tokens(server: Server, shm_run: ShmRun) -> None:
    version = shm_run.write(1)
    async with server.client(token="wrong", admin_token="data") as client:
        with pytest.raises(UnauthorizedError, match="data token"):
            await client.rollouts(request())
        with pytest.raises(UnauthorizedError, match="admin token"):
            await client.stage(version.stage)


def test_a_server_proves_that_it_knows_its_tokens(server: Server) -> None:
    nonce = "0f" * 32
    found = server.get(f"/v1/proof?nonce={nonce}").json()["proofs"]
    assert found == [proof(token, nonce, server.url) for token in ("data", "admin")]
    for wrong in ("", "?nonce=", "?nonce=0F" + "0f" * 31, f"?nonce={nonce}0f"):
        answer = server.get(f"/v1/proof{wrong}")
        assert answer.status_code == 422
        assert answer.json()["type"] == "urn:sgg:InvalidInputError"
    page = server.get("/openapi.json").json()
    documented = page["paths"]["/v1/proof"]["get"]["responses"]
    assert documented.keys() == {"200", "400", "408", "421", "422", "431", "500"}
    assert "application/problem+json" in documented["422"]["content"]


async def test_metrics(server: Server) -> None:
    async with server.client() as client:
        answer = await client.rollouts(request())
    tokens = sum(len(c.token_ids) for c in answer.completions)
    text = server.get("/metrics").text
    assert f"rollout_tokens_total {float(tokens)}" in text
    assert 'rollout_groups_total{outcome="sampled"} 1.0' in text
    assert 'rollout_state{state="ready"} 1.0' in text
    assert "rollout_policy_version 0.0" in text


def prompt_of(server: Server, name: str, **changes: Any) -> PromptGroup:
    fields = {
        "group_id": name,
        "incarnation": 1,
        "epoch": 0,
        "index": 0,
        "messages": MESSAGES,
        "images": [ImageStore(server.settings.run.files.images).put(IMAGE)],
        "sampling": Sampling(n=2),
    }
    return PromptGroup.model_validate(fields | changes)


class Trainer:
    """The other end of the queue."""

    def __init__(self, redis_url: str, keys: RunKeys) -> None:
        self._redis = connect(redis_url)
        self.queue = RedisQueue(self._redis, keys)
        self.registry = Registry(self._redis, keys)

    async def ask(self, *prompts: PromptGroup) -> None:
        for prompt in prompts:
            await self.queue.enqueue(
                prompt_stream(prompt), prompt.work_id, prompt.model_dump_json().encode()
            )

    async def answers(self, count: int) -> list[RolloutGroup]:
        groups: list[RolloutGroup] = []
        async with asyncio.timeout(60):
            while len(groups) < count:
                lease = await self.queue.claim("rollouts", "trainer", lease_s=60, block_s=1)
                if lease is not None:
                    await self.queue.complete(lease)
                    groups.append(RolloutGroup.model_validate_json(lease.body))
        return groups

    async def close(self) -> None:
        await self._redis.aclose()


async def test_a_killed_server_loses_nothing_and_catches_up(
    server: Server, shm_run: ShmRun, redis_url: str, run_keys: RunKeys
) -> None:
    trainer = Trainer(redis_url, run_keys)
    version = shm_run.write(5)
    async with server.client() as client:
        await client.stage(version.stage)
        await client.commit(version.commit)
    await trainer.registry.publish_policy(version.record, version.manifest)
    prompts = [
        prompt_of(server, f"g{i}", min_policy_version=5, sampling=Sampling(n=64)) for i in range(12)
    ]
    await trainer.ask(*prompts)
    first = await trainer.answers(2)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    server.start()
    server.wait_until_ready()
    groups = [*first, *await trainer.answers(10)]
    assert sorted(g.work_id for g in groups) == sorted(p.work_id for p in prompts)
    versions = {s.policy_version for g in groups for c in g.completions for s in c.policy_versions}
    assert versions == {5}
    assert len({group.server_id for group in groups}) == 2
    assert await trainer.queue.length(PROMPT_LANES) == 0
    await trainer.close()


async def test_sigterm_drains_and_takes_the_server_out(
    server: Server, redis_url: str, run_keys: RunKeys
) -> None:
    trainer = Trainer(redis_url, run_keys)
    await trainer.ask(*(prompt_of(server, f"g{i}") for i in range(20)))
    await trainer.answers(1)
    assert [r.url for r in await trainer.registry.servers()] == [server.url]
    server.process.terminate()
    assert server.process.wait(30) == 0, server.log.read_text()
    assert await trainer.registry.servers() == []
    left = await trainer.queue.length(PROMPT_LANES)
    done = await trainer.queue.length("rollouts")
    assert left + done == 19
    for _ in range(left):  # at once: no lease has to expire
        lease = await trainer.queue.claim(PROMPT_LANES, "other", lease_s=60, block_s=0.1)
        assert lease is not None
        assert lease.failures == []
    await trainer.close()


async def test_without_redis_http_still_serves(tmp_path: Path, shm_run: ShmRun) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    server = Server(tmp_path, shm_run.name, nowhere).wait_until_ready()
    try:
        version = shm_run.write(1)
        async with server.client() as client:
            await client.stage(version.stage)
            await client.commit(version.commit)
            assert len((await client.rollouts(request())).completions) == 3
        assert "Redis at" in server.log.read_text()
    finally:
        server.process.kill()
        server.process.wait()


def test_a_taken_port_is_said_before_anything_is_loaded(
    tmp_path: Path, server: Server, redis_url: str
) -> None:
    second = Server(tmp_path, "other", redis_url)
    second.process.kill()
    second.process.wait()
    config = second._config
    config.write_text(dump_settings(second.settings).replace(second.url, server.url))
    assert second.start().wait(60) != 0
    assert "cannot listen" in second.log.read_text()
    assert is_listening(int(server.url.rpartition(":")[2]))
