"""Our paths between GPUs, on both sides, against what is installed.

The edge alone is replaced, by `create_autospec`: a call that the real function would refuse fails.
"""

import asyncio
import inspect
import queue
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
from vllm.distributed.weight_transfer import ipc_engine
from vllm.distributed.weight_transfer.base import ParamMeta, VLLMWeightSyncClient, WeightSource

from rollout_service.vllm import worker as vllm_worker
from rollout_service.vllm.worker import TransferEngine
from services.schemas.weights import Version
from services.settings import Settings
from tests.e2e.test_transfer_engine import (
    assert_loaded,
    engine,
    info_of,
    join,
    new_tensors,
    no_streams,
    update,
)
from trainer.policy.random_state import load_random_state, save_random_state
from weight_sync.transports import nccl
from weight_sync.transports.device import CommitClient, TensorMeta, TensorSource, own_device
from weight_sync.transports.ipc import SharedTensors, gpu_uuid
from weight_sync.transports.nccl import NcclSender

__all__ = ["engine", "no_streams"]  # pytest finds fixtures by name
SETTINGS = {"model": {"path": "assets/toy-start"}, "data": {"train": "unused"}}
CPU = torch.device("cpu")
BUCKET_BYTES = 40
"""Smaller than the model: there are several buckets."""


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Mock]:
    """Replaces a function of `torch.cuda` by one that takes what the real one takes."""

    def replace(name: str, **answers: Any) -> Mock:
        stand_in: Mock = create_autospec(getattr(torch.cuda, name), **answers)
        monkeypatch.setattr(torch.cuda, name, stand_in)
        return stand_in

    return replace


def test_what_torch_is_asked_about_a_gpu(on_cuda: Callable[..., Mock], tmp_path: Path) -> None:
    assert hasattr(torch._C._CudaDeviceProperties, "uuid")
    on_cuda("is_available", return_value=True)
    on_cuda("current_device", return_value=3)
    on_cuda("get_device_properties", return_value=SimpleNamespace(uuid="3f1c"))
    state = torch.arange(16, dtype=torch.uint8)
    on_cuda("get_rng_state", return_value=state)
    restored = on_cuda("set_rng_state")
    assert own_device() == torch.device("cuda", 3)
    assert gpu_uuid(own_device()) == "3f1c"
    save_random_state(tmp_path / "rng.pt")
    load_random_state(tmp_path / "rng.pt")
    assert torch.equal(restored.call_args.args[0], state)


def test_a_new_group_has_an_id_of_the_real_library() -> None:
    first, second = (NcclSender.new_unique_id(Mock()) for _ in range(2))
    assert len(first) == 128
    assert first != second


@pytest.fixture
def wire() -> "queue.Queue[torch.Tensor]":
    """What the trainer has broadcast, and the server has not received."""
    return queue.Queue()


@pytest.fixture
def group(
    wire: "queue.Queue[torch.Tensor]", monkeypatch: pytest.MonkeyPatch
) -> dict[int, PyNcclCommunicator]:
    """NCCL's part, by rank: members take each call that a real communicator takes."""
    members: dict[int, Any] = {}

    def send(tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        wire.put(tensor.clone())

    def receive(tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        tensor.copy_(wire.get(timeout=20))

    def join(unique_id: bytes, rank: int, world_size: int, device: Any, _: Any = None) -> Any:
        assert (len(unique_id), world_size) == (128, 2)
        assert isinstance(device, (int, str, torch.device))
        member = create_autospec(PyNcclCommunicator, instance=True)
        member.broadcast.side_effect = receive if rank else send
        members[rank] = member
        return member

    real = PyNcclCommunicator.from_unique_id_bytes
    monkeypatch.setattr(
        PyNcclCommunicator, "from_unique_id_bytes", create_autospec(real, side_effect=join)
    )
    return members


async def test_a_broadcast_from_trainer_to_server(
    engine: TransferEngine,  # pytest's fixture
    no_streams: None,
    group: dict[int, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (nccl, vllm_worker):
        monkeypatch.setattr(module, "BUCKET_BYTES", BUCKET_BYTES)
    tensors = new_tensors(1)
    trainer = NcclSender(Settings.model_validate(SETTINGS))
    trainer.prepare(tensors.items(), Version(1, 1))
    communicator = trainer.join(bytes(128), 2)
    join(engine)
    assert group[0] is communicator

    async def commit(info: dict[str, Any]) -> None:
        expected = info_of(tensors)
        assert info["dtype_names"] == expected.pop("dtypes")
        assert {name: info[name] for name in expected} == expected
        await asyncio.to_thread(update, engine, info_of(tensors))

    own = nccl._Group(members={"server": 1}, unique_id=bytes(128), communicator=communicator)
    await asyncio.to_thread(trainer._send, own, CommitClient(commit))
    assert_loaded(engine, tensors)
    assert communicator.broadcast.call_count > 1
    trainer._group = own
    await trainer._leave()
    engine.shutdown()
    for member in group.values():
        member.destroy.assert_called_once()


def test_vllms_sender_finds_what_it_asks_of_us() -> None:
    for name, method in inspect.getmembers(VLLMWeightSyncClient, inspect.isfunction):
        if not name.startswith("_"):
            own = inspect.signature(getattr(CommitClient, name)).parameters
            assert list(own) == list(inspect.signature(method).parameters)
    assert WeightSource.__abstractmethods__ <= set(dir(TensorSource))
    assert list(TensorMeta._fields) == [field.name for field in fields(ParamMeta)]


class CudaStorage:
    """A tensor's storage as torch knows one in a GPU's memory."""

    def __init__(self, storage: torch.storage.TypedStorage, handle: bytes) -> None:
        self._storage = storage
        self._handle = handle
        self._untyped_storage = SimpleNamespace(device=torch.device("cuda", 0))

    def _share_cuda_(self) -> tuple[Any, ...]:
        return (
            0,
            self._handle,
            self._storage._untyped_storage.nbytes(),
            512,
            b"counter",
            3,
            b"event",
            True,
        )

    def _weak_ref(self) -> Any:
        return self._storage._untyped_storage._weak_ref()


def test_memory_of_a_gpu_from_trainer_to_server(
    engine: TransferEngine,
    on_cuda: Callable[..., Mock],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch's own `reduce_tensor` shares, and what `rebuild_cuda_tensor` gets are its arguments."""
    on_cuda("get_device_properties", return_value=SimpleNamespace(uuid="3f1c"))
    collect = on_cuda("ipc_collect")
    tensors = new_tensors(2)
    memory: dict[bytes, torch.Tensor] = {}
    typed = torch.Tensor._typed_storage

    def in_a_gpu(tensor: torch.Tensor) -> CudaStorage:
        handle = bytes([len(memory)]) * 64
        memory[handle] = tensor.reshape(-1)
        return CudaStorage(typed(tensor), handle)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "_typed_storage", in_a_gpu)
        shared = SharedTensors(tensors.items(), CPU)

    rebuilt: list[dict[str, Any]] = []

    def rebuild(*args: Any) -> torch.Tensor:
        given = inspect.signature(rebuild_cuda_tensor).bind(*args).arguments
        rebuilt.append(given)
        return torch.as_strided(
            memory[given["storage_handle"]],
            given["tensor_size"],
            given["tensor_stride"],
            given["tensor_offset"],
        )

    stand_in = create_autospec(rebuild_cuda_tensor, side_effect=rebuild)
    monkeypatch.setattr(ipc_engine, "rebuild_cuda_tensor", stand_in)
    share = shared.share
    handles = [{share.gpu: share.handles[name].model_dump()} for name in tensors]
    update(engine, info_of(tensors) | {"handles": handles})
    assert_loaded(engine, tensors)
    for given, tensor in zip(rebuilt, tensors.values(), strict=True):
        assert given["dtype"] == tensor.dtype
        assert given["storage_size_bytes"] == tensor.nbytes
        assert given["storage_offset_bytes"] == 512
        assert (given["ref_counter_handle"], given["ref_counter_offset"]) == (b"counter", 3)
        assert (given["event_handle"], given["event_sync_required"]) == (b"event", True)
        assert not given["requires_grad"]
    shared.close()
    collect.assert_called_once()
