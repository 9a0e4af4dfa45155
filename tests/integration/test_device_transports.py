"""`nccl` and `ipc` up to the edge: vLLM's own senders and real servers; only CUDA is replaced.

The group's communicator is a queue for each server, and a tensor's handle is a key of a dictionary.
`tests/gpu` does the same with CUDA.
"""

import asyncio
import base64
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm.distributed.weight_transfer.nccl_engine  # noqa: F401  # before servers wait for it
from torch import Tensor

from rollout_service.fake.engine import FakeEngine
from services.errors import EngineError, SettingsError
from services.schemas.weights import IpcHandle, Rendezvous, Transport, WeightManifest
from services.settings import Settings
from tests.live_servers import LiveServer, cluster_settings, serving, wait_registered
from tests.processes import wait_for
from weight_sync.engine import Staged
from weight_sync.publishing import publisher as publishing
from weight_sync.publishing.publisher import WeightPublisher
from weight_sync.transports import device, ipc, sender
from weight_sync.transports.files import StagedFile
from weight_sync.transports.ipc import (
    IpcSender,
    SharedTensors,
    StagedHandles,
    bare,
    decode_ipc,
)
from weight_sync.transports.nccl import NcclSender, StagedBroadcast
from weight_sync.transports.sender import Sender, make_sender


@dataclass
class Network:
    """Groups of trainer and servers, by unique id."""

    groups: dict[bytes, "Group"] = field(default_factory=dict)

    def join(self, unique_id: bytes, world_size: int) -> "Group":
        """Wait for the others; NCCL would do so for ever."""
        group = self.groups.setdefault(unique_id, Group(world_size))
        group.everybody.wait(timeout=3)
        return group


class Group:
    """What vLLM asks of `PyNcclCommunicator`."""

    def __init__(self, world_size: int) -> None:
        self.everybody = threading.Barrier(world_size)
        self.queues: list[queue.Queue[Tensor]] = [queue.Queue() for _ in range(world_size)]
        self.lets_through = threading.Event()
        self.lets_through.set()
        self.destroyed = False

    def broadcast(self, tensor: Tensor, src: int, stream: object) -> None:
        self.lets_through.wait(20)
        for receiver in self.queues[1:]:
            receiver.put(tensor.clone())

    def destroy(self) -> None:
        self.destroyed = True


class QueueNccl(NcclSender):
    """vLLM's trainer side on such a group."""

    packed = False  # packing happens on CUDA streams
    network = Network()

    def new_unique_id(self) -> bytes:
        return os.urandom(128)

    def join(self, unique_id: bytes, world_size: int) -> Any:
        return self.network.join(unique_id, world_size)


class DeviceEngine(FakeEngine):
    """Receives as GPUs would: each gets a whole version."""

    def __init__(
        self, network: Network, memory: dict[bytes, Tensor], gpus: tuple[str, ...]
    ) -> None:
        super().__init__(tokens_per_s=20_000, max_model_len=2048, gpus=gpus)
        self.loaded: dict[int, list[dict[str, Tensor]]] = {}
        self.ways: list[str] = []
        self.refuses = False
        self.handles: dict[str, dict[str, IpcHandle]] = {}
        """That it read last, by tensor and GPU."""
        self._network = network
        self._memory = memory
        self._receives: list[queue.Queue[Tensor]] = []

    async def connect(self, rendezvous: Rendezvous) -> None:
        if self.refuses:
            raise EngineError("no route to the trainer")
        unique_id = base64.b64decode(rendezvous.unique_id)
        join = partial(self._network.join, unique_id, rendezvous.world_size)
        groups = await asyncio.gather(*(asyncio.to_thread(join) for _ in self.gpus))
        ranks = range(rendezvous.rank, rendezvous.rank + len(self.gpus))
        self._receives = [groups[0].queues[rank] for rank in ranks]

    async def load_weights(self, weights: Staged, manifest: WeightManifest) -> None:
        await super().load_weights(weights, manifest)
        self.ways.append(type(weights).__name__)
        if isinstance(weights, StagedBroadcast):
            if self.refuses:
                raise EngineError("CUDA error: an illegal memory access was encountered")
            loaded = await asyncio.to_thread(self._receive, manifest)
        elif isinstance(weights, StagedHandles):
            self.handles = dict(weights.handles)
            loaded = [
                {
                    name: self._rebuild(
                        decode_ipc(weights.handles[name][bare(gpu)], entry.shape, entry.dtype)
                    )
                    for name, entry in manifest.tensors.items()
                }
                for gpu in self.gpus
            ]
        else:
            assert isinstance(weights, StagedFile)
            loaded = []
        self.loaded[manifest.policy_version] = loaded

    def _receive(self, manifest: WeightManifest) -> list[dict[str, Tensor]]:
        return [{name: rank.get(timeout=5) for name in manifest.tensors} for rank in self._receives]

    def _rebuild(self, args: tuple[Any, ...]) -> Tensor:
        _, size, stride, offset, _, dtype, _, handle, *_ = args
        storage = self._memory[handle]
        assert storage.dtype == dtype
        return torch.as_strided(storage, size, stride, offset).clone()


class Cluster:
    """Servers and a publisher of one run."""

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        self.settings = settings
        self.network = Network()
        self.memory: dict[bytes, Tensor] = {}
        """The trainer's GPU's, which the first server is on."""
        self.engines: list[DeviceEngine] = []
        self.publisher: WeightPublisher
        self._stack = stack

    def server(self, num_gpus: int = 1) -> tuple[LiveServer, DeviceEngine]:
        first = sum(len(engine.gpus) for engine in self.engines)
        gpus = tuple(f"GPU-{number}" for number in range(first, first + num_gpus))
        engine = DeviceEngine(self.network, self.memory, gpus)
        self.engines.append(engine)
        return wait_registered(self._stack.enter_context(serving(self.settings, engine))), engine


@pytest.fixture
def make_cluster(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Cluster]]:
    # On a CPU there are no streams.
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)

    with ExitStack() as stack:

        def make(transport: Transport, kind: type[Sender]) -> Cluster:
            name = f"device-{uuid.uuid4().hex[:8]}"
            cluster = Cluster(cluster_settings(tmp_path, name, redis_url, transport), stack)
            monkeypatch.setattr(QueueNccl, "network", cluster.network)
            monkeypatch.setattr(publishing, "make_sender", kind)
            cluster.publisher = WeightPublisher(cluster.settings, 1)
            stack.callback(cluster.publisher.close)
            return cluster

        yield make


def weights(version: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(version)
    return {
        "a": torch.randn(30, 4, generator=generator),
        "b": torch.randn(6, generator=generator).to(torch.bfloat16),
        "c": torch.randn(5, 3, generator=generator).t(),
    }


def is_loaded(engine: DeviceEngine, version: int) -> bool:
    parts, expected = engine.loaded[version], weights(version)
    return len(parts) == len(engine.gpus) and all(
        part.keys() == expected.keys() and all(torch.equal(part[n], expected[n]) for n in part)
        for part in parts
    )


def serves(server: LiveServer, version: int) -> bool:
    return server.policy().policy_version == version


def publish(cluster: Cluster, version: int) -> int:
    return cluster.publisher.begin(weights(version).items(), version).result()


def test_one_group_broadcasts_versions_to_all_servers(make_cluster: Any) -> None:
    cluster = make_cluster("nccl", QueueNccl)
    servers = [cluster.server(), cluster.server(num_gpus=2), cluster.server()]
    for version in (1, 2, 3):
        assert publish(cluster, version) == 3
        for server, engine in servers:
            assert server.policy().policy_version == version
            assert is_loaded(engine, version)
    (group,) = cluster.network.groups.values()
    assert len(group.queues) == 1 + 4, "the trainer, and every GPU"
    assert {way for _, engine in servers for way in engine.ways} == {"StagedBroadcast"}


def test_a_server_that_joins_or_leaves_makes_a_new_group(make_cluster: Any) -> None:
    cluster = make_cluster("nccl", QueueNccl)
    _, first = cluster.server()
    assert publish(cluster, 1) == 1
    late_server, late = cluster.server()
    wait_for("the seeding", lambda: late_server.policy().policy_version == 1)
    assert late.ways == ["StagedFile"], "a late server is sent the version over HTTP"
    assert publish(cluster, 2) == 2
    groups = list(cluster.network.groups.values())
    assert [len(group.queues) for group in groups] == [2, 3]
    assert [group.destroyed for group in groups] == [True, False]
    assert is_loaded(first, 2)
    assert is_loaded(late, 2)


def test_a_server_that_does_not_join_leaves_the_version_to_http(
    make_cluster: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = make_cluster("nccl", QueueNccl)
    monkeypatch.setattr(sender, "SERVER_TIMEOUT_S", 1.0)  # the other server waits in its stage
    server, _ = cluster.server()
    refusing_server, refusing = cluster.server()
    refusing.refuses = True
    assert publish(cluster, 1) == 0
    assert "no broadcast: " in caplog.text
    assert f"{refusing_server.url} is left behind" in caplog.text
    for late in (server, refusing_server):
        wait_for("the seeding", partial(serves, late, 1))
    refusing.refuses = False
    assert publish(cluster, 2) == 2
    assert refusing.ways == ["StagedFile", "StagedBroadcast"]


def test_a_server_that_fails_in_the_broadcast_is_seeded(make_cluster: Any) -> None:
    cluster = make_cluster("nccl", QueueNccl)
    _, healthy = cluster.server()
    failing_server, failing = cluster.server()
    assert publish(cluster, 1) == 2
    failing.refuses = True
    assert publish(cluster, 2) == 1
    assert is_loaded(healthy, 2)
    wait_for("the seeding", lambda: failing_server.policy().policy_version == 2)
    assert failing_server.policy().state == "ready"
    failing.refuses = False
    assert publish(cluster, 3) == 2
    assert is_loaded(failing, 3)
    assert len(cluster.network.groups) == 2


def test_a_broadcast_that_hangs_is_given_up(
    make_cluster: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = make_cluster("nccl", QueueNccl)
    server, _ = cluster.server()
    assert publish(cluster, 1) == 1
    (group,) = cluster.network.groups.values()
    group.lets_through.clear()
    monkeypatch.setattr(sender, "SERVER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(device, "TRANSFER_TIMEOUT_S", 2.0)
    assert publish(cluster, 2) == 0
    assert f"waited 2 s for the broadcast to {server.url}" in caplog.text
    monkeypatch.setattr(sender, "SERVER_TIMEOUT_S", 20.0)
    wait_for("the seeding", lambda: server.policy().policy_version == 2)
    group.lets_through.set()
    assert group.destroyed


@pytest.mark.parametrize(("transport", "kind"), [("nccl", QueueNccl), ("ipc", IpcSender)])
def test_each_deadline_grows_with_the_bytes(
    make_cluster: Any, monkeypatch: pytest.MonkeyPatch, transport: str, kind: type[Sender]
) -> None:
    """The trainer's for the transfer, and that of the commits in which it happens."""
    cluster = make_cluster(transport, kind)
    share_memory(monkeypatch, cluster.memory)
    cluster.server()
    asked: set[tuple[str, int]] = set()
    modules = (device, ipc, sender) if transport == "ipc" else (device, sender)

    def note(name: str, num_bytes: int) -> float:
        asked.add((name, num_bytes))
        return 0.0

    for module in modules:
        monkeypatch.setattr(module, "moving_s", partial(note, module.__name__))
    assert publish(cluster, 1) == 1
    size = sum(tensor.nbytes for tensor in weights(1).values())
    assert asked >= {(module.__name__, size) for module in modules}


def test_a_server_on_the_same_gpu_reads_the_tensors_there(
    make_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster("ipc", IpcSender)
    share_memory(monkeypatch, cluster.memory)
    _, engine = cluster.server()
    elsewhere_server, elsewhere = cluster.server()
    for version in (1, 2):
        assert publish(cluster, version) == 1
        assert is_loaded(engine, version)
        wait_for("the seeding", partial(serves, elsewhere_server, version))
    assert engine.ways == ["StagedHandles", "StagedHandles"]
    assert set(elsewhere.ways) == {"StagedFile"}, "the other server is on another GPU"


def test_each_rank_shares_with_the_server_on_its_gpu(
    make_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four ranks: a server is on the first one's GPU, one on the next two, one half elsewhere."""
    cluster = make_cluster("ipc", IpcSender)
    share_memory(monkeypatch, cluster.memory)
    engines = [cluster.server()[1], cluster.server(num_gpus=2)[1]]
    elsewhere_server, elsewhere = cluster.server(num_gpus=2)
    for version in (1, 2):
        others = []
        for rank in (3, 2, 1):
            on_gpu(monkeypatch, rank)
            others.append(SharedTensors(weights(version).items(), torch.device("cpu")))
        on_gpu(monkeypatch, 0)
        shares = [other.share for other in others]
        begun = cluster.publisher.begin(
            weights(version).items(), version, gather_shares=partial(list, shares)
        )
        assert begun.result() == 2
        assert all(is_loaded(engine, version) for engine in engines)
        wait_for("the seeding", partial(serves, elsewhere_server, version))
        first, second = (engine.handles for engine in engines)
        for share in shares[1:]:
            read = {name: gpus[share.gpu] for name, gpus in second.items()}
            assert read == share.handles, "each part of the model reads its own GPU's memory"
        assert {gpu for gpus in first.values() for gpu in gpus} == {"0"}
        for other in others:
            other.close()
    assert set(elsewhere.ways) == {"StagedFile"}


def share_memory(monkeypatch: pytest.MonkeyPatch, memory: dict[bytes, Tensor]) -> None:
    """CUDA's part: this process is on GPU 0, and handles are names of its tensors."""

    def reduce_tensor(tensor: Tensor) -> tuple[None, tuple[Any, ...]]:
        handle = os.urandom(64)
        memory[handle] = tensor.as_strided((tensor.numel(),), (1,), 0)
        storage = type(tensor.untyped_storage())
        rest = (tensor.nbytes, 0, False, b"counter", 8, b"event", True)
        place = (tensor.size(), tensor.stride(), tensor.storage_offset())
        return None, (type(tensor), *place, storage, tensor.dtype, 0, handle, *rest)

    monkeypatch.setattr(ipc, "reduce_tensor", reduce_tensor)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    on_gpu(monkeypatch, 0)


def on_gpu(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    properties = SimpleNamespace(uuid=str(number))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def test_a_trainer_without_gpu_says_so_at_once(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for transport in ("nccl", "ipc"):
        settings = cluster_settings(tmp_path, "run", "redis://127.0.0.1:1/0", transport)
        with pytest.raises(SettingsError, match="there is none: use shm"):
            make_sender(settings)
