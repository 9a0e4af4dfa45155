"""The publisher against real servers (uvicorn, Redis, fake engine): files, uploads, seeding."""

import asyncio
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import torch
from safetensors import safe_open

from evaluation.of_a_run.during import DuringTraining
from launcher.inference import registered_servers
from rollout_service.fake.engine import FakeEngine
from services.errors import (
    EngineError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
    WaitTimeoutError,
)
from services.host.ports import free_port
from services.http.clients.rollout import RolloutClient
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.registry import Registry
from services.schemas.weights import (
    Encoding,
    PassOnRequest,
    ServerRecord,
    Transport,
    Version,
    WeightManifest,
)
from services.settings import SecuritySettings, Settings, dump_settings
from services.waiting import RoomWait
from tests.cutting_proxy import proxied
from tests.live_servers import LiveServer, cluster_settings, serving, wait_registered
from tests.processes import sgg_process, wait_for, wait_ready
from tests.shm_versions import ShmRun
from weight_sync.engine import Staged
from weight_sync.file_format import write_weights
from weight_sync.publishing.publisher import WeightPublisher
from weight_sync.transports import http, sender
from weight_sync.transports.disk import disk_file
from weight_sync.transports.files import StagedFile
from weight_sync.transports.lora import StagedAdapter
from weight_sync.transports.sender import CheckedManifest, Peer
from weight_sync.transports.shm import shm_file
from weight_sync.transports.uploads.spool import spool_folder

ADAPTER = "base_model.model.model.layers.0.self_attn.q_proj"


class RecordingEngine(FakeEngine):
    """Reads what it loads; fails, or waits, where it is told to."""

    def __init__(self) -> None:
        super().__init__(tokens_per_s=20_000, max_model_len=2048)
        self.loaded: dict[int, dict[str, torch.Tensor]] = {}
        self.failures = 0

    async def load_weights(self, weights: Staged, manifest: WeightManifest) -> None:
        if self.failures:
            self.failures -= 1
            raise EngineError("half of the tensors are on the meta device")
        await super().load_weights(weights, manifest)
        self.loaded[manifest.policy_version] = await asyncio.to_thread(_read, weights)


def _read(weights: Staged) -> dict[str, torch.Tensor]:
    assert isinstance(weights, StagedFile | StagedAdapter)
    file = weights.path if isinstance(weights, StagedFile) else weights.folder / ADAPTER_FILE
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


ADAPTER_FILE = "adapter_model.safetensors"


def record_of(url: str, name: str) -> ServerRecord:
    """A ready server's."""
    return ServerRecord(
        server_id=name,
        url=url,
        host="elsewhere",
        gpu=None,
        state="ready",
        policy_version=0,
        tokens_per_s=0,
        groups_done=0,
    )


class Cluster:
    """Servers and publishers of one run."""

    def __init__(self, settings: Settings, keys: RunKeys, stack: ExitStack) -> None:
        self.settings = settings
        self.keys = keys
        self.stack = stack

    def server(self) -> LiveServer:
        return wait_registered(self.stack.enter_context(serving(self.settings, RecordingEngine())))

    def announce(self, url: str, name: str, ttl_s: float = 120) -> None:
        """A record of a server that does not write its own."""

        async def write() -> None:
            redis = connect(self.settings.redis)
            await Registry(redis, self.keys).heartbeat(record_of(url, name), ttl_s=ttl_s)
            await redis.aclose()

        asyncio.run(write())

    def publisher(self, incarnation: int = 1) -> WeightPublisher:
        publisher = WeightPublisher(self.settings, incarnation)
        self.stack.callback(publisher.close)
        return publisher


@pytest.fixture
def make_cluster(tmp_path: Path, redis_url: str) -> Iterator[Any]:
    with ExitStack() as stack:

        def make(
            transport: Transport, encoding: Encoding = "whole", redis: str = redis_url
        ) -> Cluster:
            name = f"weights-{uuid.uuid4().hex[:8]}"
            settings = cluster_settings(tmp_path, name, redis, transport, encoding)
            return Cluster(settings, RunKeys(name), stack)

        yield make


def weights(version: int, size: int = 1000) -> dict[str, torch.Tensor]:
    """Some other numbers for each version; odd shapes, and a bfloat16 as the policy may have."""
    generator = torch.Generator().manual_seed(7)
    a = torch.randn(size, 3, generator=generator)
    a[version % 50 :: 50] *= 1 + version
    return {
        "a": a,
        "b.bias": torch.randn(7, generator=generator),
        "c": torch.tensor(float(version)),
        "d": torch.randn(5, 2, generator=generator).add_(version).to(torch.bfloat16).t(),
    }


both_encodings = pytest.mark.parametrize("encoding", get_args(Encoding))


def assert_loaded(server: LiveServer, version: int, expected: dict[str, torch.Tensor]) -> None:
    assert isinstance(server.engine, RecordingEngine)
    loaded = server.engine.loaded[version]
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


@both_encodings
@pytest.mark.parametrize("transport", ["shm", "disk", "http"])
def test_all_servers_get_each_version_and_nothing_is_left(
    make_cluster: Any, transport: Transport, encoding: Encoding
) -> None:
    cluster = make_cluster(transport, encoding)
    servers = [cluster.server(), cluster.server()]
    publisher = cluster.publisher()
    for version in range(4):
        assert publisher.begin(weights(version).items(), version).result() == 2
        for server in servers:
            policy = server.policy()
            assert (policy.policy_version, policy.incarnation) == (version, 1)
            assert_loaded(server, version, weights(version))
    assert publisher.metrics.pop("version_s").keys() == {"prepare", "stage", "commit"}
    whole = {"version_bytes": 12_052, "version_chain": 0}
    # 40 rows of three elements and the scalar in five bytes each, ten bfloat16s in three.
    delta = {
        "version_bytes": 121 * 5 + 10 * 3,
        "version_chain": 3,
        "version_changed_share": 131 / 3018,
    }
    assert publisher.metrics == (delta if encoding == "delta" else whole)
    publisher.close()
    run = cluster.settings.run
    assert not list(shm_file(run.name, Version()).parent.glob("*"))
    assert not list(Path(tempfile.gettempdir()).glob(f"sgg-{run.name}-trainer-*"))
    kept = sorted(file.name for file in disk_file(run.folder, Version()).parent.glob("*"))
    on_disk = {
        "whole": ["1-2.safetensors", "1-3.safetensors"],
        "delta": ["1-0.safetensors", "1-1.delta", "1-2.delta", "1-3.delta"],
    }
    assert kept == (on_disk[encoding] if transport == "disk" else [])


def test_an_adapter_goes_the_same_way(make_cluster: Any) -> None:
    cluster = make_cluster("lora")
    lora = cluster.settings.lora.model_copy(update={"rank": 4, "alpha": 8.0})
    cluster.settings = cluster.settings.model_copy(update={"lora": lora})
    server = cluster.server()
    tensors = {
        f"{ADAPTER}.lora_A.weight": torch.randn(4, 16),
        f"{ADAPTER}.lora_B.weight": torch.randn(8, 4),
    }
    publisher = cluster.publisher()
    assert publisher.begin(tensors.items(), 1).result() == 1
    assert_loaded(server, 1, tensors)
    late = cluster.server()
    wait_for("the late server's version", lambda: late.policy().policy_version == 1)
    assert_loaded(late, 1, tensors)


@both_encodings
@pytest.mark.parametrize("transport", ["shm", "disk", "http"])
def test_a_late_server_gets_the_version(
    make_cluster: Any, transport: Transport, encoding: Encoding
) -> None:
    cluster = make_cluster(transport, encoding)
    publisher = cluster.publisher()
    assert publisher.begin(weights(5).items(), 5).result() == 0
    first = cluster.server()
    wait_for("the version", lambda: first.policy().policy_version == 5)
    assert_loaded(first, 5, weights(5))
    second = cluster.server()
    wait_for("the version", lambda: second.policy().policy_version == 5)
    assert publisher.begin(weights(6).items(), 6).result() == 2


def num_passed(server: LiveServer) -> int:
    """Times that a server has sent a version to another one."""
    labels = {"method": "POST", "route": "/v1/weights/pass-on", "status": "200"}
    counts = server.process.app.state.registry
    return int(counts.get_sample_value("http_requests_total", labels) or 0)


@both_encodings
def test_the_trainer_sends_a_version_once_and_servers_pass_it_on(
    make_cluster: Any, encoding: Encoding
) -> None:
    """Whole, or what it changes; a late server gets it whole, from another server too."""
    cluster = make_cluster("http", encoding)
    servers = [cluster.server() for _ in range(5)]
    publisher = cluster.publisher()
    for version in (1, 2):
        assert publisher.begin(weights(version).items(), version).result() == 5
        assert (publisher.metrics["version_chain"] > 0) == (encoding == "delta" and version > 1)
        for server in servers:
            assert_loaded(server, version, weights(version))
    passed = [num_passed(server) for server in servers]
    assert sum(passed) == 2 * 4
    assert max(passed) <= 2 * 2
    late = cluster.server()
    wait_for("the version", lambda: late.policy().policy_version == 2)
    assert_loaded(late, 2, weights(2))
    assert sum(num_passed(server) for server in servers) == 2 * 4 + 1


@pytest.mark.parametrize("is_gone", [True, False], ids=["it is gone", "its file is gone"])
def test_the_trainer_stands_in_for_a_server_that_does_not_pass_a_version_on(
    make_cluster: Any, caplog: pytest.LogCaptureFixture, is_gone: bool
) -> None:
    cluster = make_cluster("http")
    publisher = cluster.publisher()
    with ExitStack() as until_gone:
        first = wait_registered(
            until_gone.enter_context(serving(cluster.settings, RecordingEngine()))
        )
        assert publisher.begin(weights(1).items(), 1).result() == 1
        if is_gone:
            until_gone.close()
        else:
            for file in spool_folder(first.settings).iterdir():
                file.unlink()
        late = cluster.server()
        wait_for("the version", lambda: late.policy().policy_version == 1)
        assert_loaded(late, 1, weights(1))
    assert f"{first.url} does not pass version 1 of incarnation 1 on to {late.url}" in caplog.text
    assert num_passed(first) == 0


async def test_a_server_that_hangs_while_it_passes_a_version_on_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shm_run: ShmRun
) -> None:
    """Long before the time for all of the version's bytes is over."""
    monkeypatch.setattr(sender, "_ASK_TIMEOUT_S", 0.2)
    settings = cluster_settings(tmp_path, "hanging", "redis://127.0.0.1:1/0", "http")
    settings = settings.model_copy(update={"security": SecuritySettings()})
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        giver, other = (Peer(record_of(url, name), settings) for name in ("giver", "other"))
        async with asyncio.timeout(30):
            checked = CheckedManifest.of(shm_run.write(1).manifest)
            assert not await http._passed_on(giver, other, checked, whole=True)


def test_a_server_passes_a_version_on_to_servers_of_the_run_alone(make_cluster: Any) -> None:
    cluster = make_cluster("http")
    server = cluster.server()
    cluster.publisher().begin(weights(1).items(), 1).result()
    checksum = server.policy().checksum

    async def ask(url: str, checksum: str | None, admin_token: str = "admin-secret") -> None:
        async with RolloutClient(
            server.url, token="data-secret", admin_token=admin_token, timeout_s=20
        ) as client:
            await client.pass_on(PassOnRequest.model_validate({"checksum": checksum, "url": url}))

    with Stranger(server.url) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        with pytest.raises(UnauthorizedError, match="does not prove"):
            asyncio.run(ask(stranger.url, checksum))
        stranger.shutdown()
    assert set(stranger.seen) == {("/v1/proof", None)}
    with pytest.raises(NotFoundError, match="no version with that checksum"):
        asyncio.run(ask(server.url, "0" * 64))
    with pytest.raises(UnauthorizedError, match="admin token"):
        asyncio.run(ask(server.url, checksum, "data-secret"))


def test_a_killed_server_that_comes_back_gets_the_version(
    make_cluster: Any, tmp_path: Path
) -> None:
    cluster = make_cluster("http")
    url = f"http://127.0.0.1:{free_port()}"
    rollout = cluster.settings.rollout.model_copy(update={"url": url})
    config, log = tmp_path / "server.toml", tmp_path / "server.log"
    config.write_text(dump_settings(cluster.settings.model_copy(update={"rollout": rollout})))
    publisher = cluster.publisher()
    publisher.begin(weights(1).items(), 1).result()
    for _ in range(2):
        with sgg_process(log, "serve", "rollout", "--config", str(config)) as process:
            wait_ready(url, process, log)
            wait_for("the version", lambda: version_at(url) == 1)


def version_at(url: str) -> int:
    async def ask() -> int:
        async with RolloutClient(url, token="data-secret") as client:
            return (await client.policy()).policy_version

    return asyncio.run(ask())


@both_encodings
def test_a_quarantined_server_is_sent_the_version_again(
    make_cluster: Any, encoding: Encoding
) -> None:
    cluster = make_cluster("http", encoding)
    broken, healthy = cluster.server(), cluster.server()
    assert isinstance(broken.engine, RecordingEngine)
    publisher = cluster.publisher()
    assert publisher.begin(weights(1).items(), 1).result() == 2
    broken.engine.failures = 3  # the commit, its retry, and the first seeding's first attempt
    assert publisher.begin(weights(2).items(), 2).result() == 1
    assert healthy.policy().policy_version == 2
    wait_for("the version", lambda: broken.policy().policy_version == 2)
    assert broken.policy().state == "ready"
    assert_loaded(broken, 2, weights(2))


def test_servers_that_are_dead_or_hang_do_not_keep_the_others_waiting(
    make_cluster: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = make_cluster("http")
    server = cluster.server()
    dead, hanging = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    cluster.announce(dead, "dead")
    cluster.announce(hanging, "hanging")
    monkeypatch.setattr(sender, "SERVER_TIMEOUT_S", 1.0)
    port = int(hanging.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):  # takes connections, and says nothing
        assert cluster.publisher().begin(weights(1).items(), 1).result() == 1
    assert server.policy().policy_version == 1
    assert f"{dead} is left behind" in caplog.text
    assert f"{hanging} is left behind: GET {hanging}/v1/policy gave no answer in 1 s" in caplog.text


def test_an_upload_that_breaks_is_sent_once_more_from_the_start(
    make_cluster: Any, tmp_path: Path
) -> None:
    cluster = make_cluster("http")
    server = cluster.server()
    file = tmp_path / "version.safetensors"
    write_weights(file, weights(1, size=200_000).items(), RoomWait(file.parent, 1.0))

    async def upload(url: str) -> None:
        client = RolloutClient(url, token="data-secret", admin_token="admin-secret", timeout_s=20)
        async with client:
            await client.upload(file, Version(1, 1))

    with proxied(server.url) as proxy:
        proxy.cuts = [1_000_000]
        asyncio.run(upload(proxy.url))
        assert proxy.num_cut == 1
        proxy.cuts = [1_000_000] * 100
        with pytest.raises(UnavailableError, match="failed on the way"):
            asyncio.run(upload(proxy.url))
        assert proxy.num_cut >= 3
        file.unlink()
        with pytest.raises(NotFoundError, match="nothing to send"):
            asyncio.run(upload(proxy.url))


def test_a_server_behind_a_bad_line_is_left_behind_and_seeded_later(make_cluster: Any) -> None:
    """Reachable through a proxy alone, which cuts all attempts of the first publication."""
    cluster = make_cluster("http")
    alone = f"redis://127.0.0.1:{free_port()}/0"
    unregistered = cluster.settings.redis.model_copy(update={"url": alone})
    own = f"http://127.0.0.1:{free_port()}"
    rollout = cluster.settings.rollout.model_copy(update={"url": own})
    settings = cluster.settings.model_copy(update={"redis": unregistered, "rollout": rollout})
    proxy = cluster.stack.enter_context(proxied(own))
    engine = RecordingEngine()
    remote = cluster.stack.enter_context(serving(settings, engine, reached_as=proxy.url))
    healthy = cluster.server()
    cluster.announce(proxy.url, "remote")
    proxy.cuts = [1_000_000] * 100
    publisher = cluster.publisher()
    assert publisher.begin(weights(1, size=200_000).items(), 1).result() == 1
    proxy.cuts = []
    assert healthy.policy().policy_version == 1
    wait_for("the seeding", lambda: remote.policy().policy_version == 1)
    assert_loaded(remote, 1, weights(1, size=200_000))
    assert proxy.num_cut >= 2


@both_encodings
def test_seeding_stops_while_a_version_is_published(make_cluster: Any, encoding: Encoding) -> None:
    """A server that refuses all versions is tried again and again; publishing goes on."""
    cluster = make_cluster("http", encoding)
    refusing, healthy = cluster.server(), cluster.server()
    assert isinstance(refusing.engine, RecordingEngine)
    refusing.engine.failures = 1_000
    publisher = cluster.publisher()
    for version in range(1, 6):
        assert publisher.begin(weights(version).items(), version).result() == 1
        assert healthy.policy().policy_version == version
    refusing.engine.failures = 0
    wait_for("the last version", lambda: refusing.policy().policy_version == 5)
    assert list(refusing.engine.loaded) == [5]


def test_a_superseded_trainer_leaves_its_successors_files(make_cluster: Any) -> None:
    cluster = make_cluster("shm")
    earlier, later = cluster.publisher(1), cluster.publisher(2)
    earlier.begin(weights(7).items(), 7).result()
    later.begin(weights(3).items(), 3).result()
    earlier.close()
    server = cluster.server()
    wait_for("the version", lambda: server.policy().policy_version == 3)
    assert server.policy().incarnation == 2


def test_a_trainer_waits_for_redis_and_says_so(make_cluster: Any) -> None:
    cluster = make_cluster("http", redis=f"redis://127.0.0.1:{free_port()}/0")
    trainer = cluster.settings.trainer.model_copy(update={"wait_timeout_s": 1.5})
    cluster.settings = cluster.settings.model_copy(update={"trainer": trainer})
    with pytest.raises(WaitTimeoutError, match="Redis at"):
        cluster.publisher().begin(weights(1).items(), 1).result()


class Stranger(ThreadingHTTPServer):
    """Registered in Redis, without a token; relays what it can to a real server."""

    def __init__(self, real: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.real = real
        self.seen: list[tuple[str, str | None]] = []
        """Paths, with the tokens that came with them."""
        self.proofs: list[int] = []
        """Status of the real server's answers."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Relay(BaseHTTPRequestHandler):
    server: Stranger

    def do_GET(self) -> None:
        path, query = self.path.partition("?")[::2]
        self.server.seen.append((path, self.headers.get("Authorization")))
        # As the real server would be asked by the trainer: its own name in the Host header.
        answer = httpx.get(f"{self.server.real}{path}?{query}", trust_env=False)
        self.server.proofs.append(answer.status_code)
        self.send_response(answer.status_code)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_stranger_in_redis_gets_neither_tokens_nor_weights(
    make_cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that has a real server answer for it: the proof is for the real one's address."""
    cluster = make_cluster("http")
    server = cluster.server()
    with Stranger(server.url) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        cluster.announce(stranger.url, "stranger")
        assert cluster.publisher().begin(weights(1).items(), 1).result() == 1
        assert registered_servers(cluster.settings) == [server.url]
        stranger.shutdown()
    assert server.policy().policy_version == 1
    assert set(stranger.seen) == {("/v1/proof", None)}
    assert set(stranger.proofs) == {200}
    assert f"{stranger.url} stands in Redis as a rollout server, and does not prove" in caplog.text


def test_a_killed_server_whose_address_another_has_is_asked_once(make_cluster: Any) -> None:
    """Its record would live until its heartbeat expires, but the next one takes its place."""
    cluster = make_cluster("http")
    url = f"http://127.0.0.1:{free_port()}"
    cluster.announce(url, "killed")
    rollout = cluster.settings.rollout.model_copy(update={"url": url})
    settings = cluster.settings.model_copy(update={"rollout": rollout})
    server = cluster.stack.enter_context(serving(settings, RecordingEngine(), reached_as=url))
    wait_registered(server)
    assert registered_servers(cluster.settings) == [server.url]
    beside = DuringTraining(cluster.settings)
    assert asyncio.run(beside._servers(0)) == [server.url]
    beside.close()
    assert cluster.publisher().begin(weights(1).items(), 1).result() == 1
    assert server.policy().policy_version == 1


def test_hosts_that_are_not_allowed_are_not_even_asked(make_cluster: Any) -> None:
    cluster = make_cluster("http")
    server = cluster.server()
    security = cluster.settings.security.model_copy(update={"rollout_hosts": ["10.0.0.0/8"]})
    settings = cluster.settings.model_copy(update={"security": security})
    with pytest.raises(UnauthorizedError, match=r"none of security\.rollout_hosts"):
        registered_servers(settings)
    cluster.settings = settings
    assert cluster.publisher().begin(weights(1).items(), 1).result() == 0
    assert server.policy().policy_version == 0


def test_without_tokens_nothing_is_sent_beyond_this_machine(make_cluster: Any) -> None:
    cluster = make_cluster("http")
    cluster.settings = cluster.settings.model_copy(update={"security": SecuritySettings()})
    server = cluster.server()
    cluster.announce("http://192.0.2.1:8200", "stranger")
    assert registered_servers(cluster.settings) == [server.url]
