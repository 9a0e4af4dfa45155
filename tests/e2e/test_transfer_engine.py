"""Worker and executor up to the edge of a GPU: NCCL, CUDA IPC and the queues are the only fakes.

The producer and the consumer of packed broadcasts, the layerwise reload and the model are real.
"""

import base64
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer import ipc_engine, nccl_engine, packed_tensor
from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.v1.executor.multiproc_executor import WorkerProc

from rollout_service.vllm import worker as vllm_worker
from rollout_service.vllm.executor import TensorParallelExecutor
from rollout_service.vllm.worker import BACKEND, TransferEngine
from weight_sync.transports.ipc import decode_ipc, encode_ipc

BUCKET_BYTES = 100
"""Smaller than the model, so that there are several buckets."""
UNIQUE_ID = base64.b64encode(bytes(128)).decode()


class Model(torch.nn.Module):  # type: ignore[misc]
    """Two layers, loaded as vLLM's models are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.second = torch.nn.Linear(4, 2)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            parameter = self.get_parameter(name)
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)


class Wire:
    """A group of two: what the trainer broadcasts, the server gets; `destroy` ends all waits."""

    def __init__(self) -> None:
        self._sent: queue.Queue[torch.Tensor | None] = queue.Queue()
        self.destroyed = False

    def sender(self) -> SimpleNamespace:
        return SimpleNamespace(broadcast=lambda tensor, src: self._sent.put(tensor.clone()))

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        sent = None if self.destroyed else self._sent.get()
        if sent is not None:
            tensor.copy_(sent)

    def destroy(self) -> None:
        self.destroyed = True
        self._sent.put(None)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TransferEngine:
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)  # as vLLM does on CPU
    model = Model()
    record_metadata_for_reloading(model)
    parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
    config = SimpleNamespace(
        parallel_config=parallel, model_config=SimpleNamespace(dtype=torch.float32)
    )
    return TransferEngine(WeightTransferConfig(backend=BACKEND), config, torch.device("cpu"), model)


@pytest.fixture
def no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda device, count: [stream] * count)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)


@pytest.fixture
def wire(engine: TransferEngine, monkeypatch: pytest.MonkeyPatch, no_streams: None) -> Wire:
    wire = Wire()
    monkeypatch.setattr(vllm_worker, "BUCKET_BYTES", BUCKET_BYTES)
    monkeypatch.setattr(nccl_engine, "worker_init_process_group", lambda *_: wire)
    join(engine)
    return wire


def join(engine: TransferEngine) -> None:
    info = {"unique_id": UNIQUE_ID, "world_size": 2, "rank": 1}
    engine.init_transfer_engine(engine.parse_init_info(info))
    until(engine.is_connected)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def new_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator) for n, p in Model().named_parameters()}


def info_of(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "names": list(tensors),
        "dtypes": ["float32"] * len(tensors),
        "shapes": [list(tensor.shape) for tensor in tensors.values()],
    }


def assert_loaded(engine: TransferEngine, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        torch.testing.assert_close(engine.model.get_parameter(name).data, tensor)


def update(engine: TransferEngine, info: dict[str, Any]) -> None:
    engine.start_weight_update()
    engine.update_weights(info)
    engine.finish_weight_update()


def test_a_broadcast_in_buckets(
    engine: TransferEngine, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for it grows with its bytes."""
    asked: list[int] = []

    def note(num_bytes: int) -> float:
        asked.append(num_bytes)
        return 0.0

    monkeypatch.setattr(vllm_worker, "moving_s", note)
    for seed in (1, 2):
        tensors = new_tensors(seed)
        sending = threading.Thread(
            target=packed_tensor.packed_nccl_broadcast_producer,
            args=(iter(tensors.items()), wire.sender(), 0, lambda item: item[1], BUCKET_BYTES),
        )
        sending.start()
        update(engine, info_of(tensors))
        sending.join()
        assert_loaded(engine, tensors)
    assert asked == 2 * [sum(tensor.nbytes for tensor in tensors.values())]


def test_a_broadcast_that_stops_is_given_up_and_a_file_can_follow(
    engine: TransferEngine, wire: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The trainer dies after a part of the first layer."""
    monkeypatch.setattr(vllm_worker, "BROADCAST_S", 0.3)
    tensors = new_tensors(3)
    first = dict(list(tensors.items())[:1])
    packed_tensor.packed_nccl_broadcast_producer(
        iter(first.items()), wire.sender(), 0, lambda item: item[1], 1
    )
    engine._nccl.packed_buffer_size_bytes = 1
    engine.start_weight_update()
    with pytest.raises(TimeoutError, match=r"took longer than 0\.3 s"):
        engine.update_weights(info_of(tensors))
    assert wire.destroyed
    with pytest.raises(RuntimeError, match="not initialized"):
        update(engine, info_of(tensors))
    save_file(tensors, tmp_path / "file")
    update(engine, {"file": str(tmp_path / "file")})
    assert_loaded(engine, tensors)


def test_joining_waits_in_a_thread_and_a_new_group_ends_the_old_one(
    engine: TransferEngine, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = threading.Event()
    other = Wire()

    def wait_for_trainer(info: Any, _: Any) -> Wire:
        assert (info.rank_offset, info.world_size, info.packed) == (1, 2, True)
        there.wait(20)
        return other

    monkeypatch.setattr(nccl_engine, "worker_init_process_group", wait_for_trainer)
    info = engine.parse_init_info({"unique_id": UNIQUE_ID, "world_size": 2, "rank": 1})
    engine.init_transfer_engine(info)
    assert wire.destroyed
    assert not engine.is_connected()
    there.set()
    until(engine.is_connected)
    assert engine._nccl.model_update_group is other


def test_a_failed_join_says_why(engine: TransferEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("libnccl.so.2: no such file")

    monkeypatch.setattr(nccl_engine, "worker_init_process_group", fail)
    with pytest.raises(OSError, match=r"libnccl\.so\.2"):
        join(engine)


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, torch.Tensor]:
    """Tensors by handle, as another process would have shared them."""
    shared: dict[bytes, torch.Tensor] = {}

    def rebuild(_: Any, size: Any, stride: Any, offset: int, *rest: Any) -> torch.Tensor:
        device, memory = rest[2:4]
        assert device is None, "the worker's own, whatever the trainer calls it"
        return torch.as_strided(shared[memory], size, stride, offset)

    monkeypatch.setattr(ipc_engine, "rebuild_cuda_tensor", rebuild)
    gpu = SimpleNamespace(uuid="3f1c")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    return shared


def reduced(tensor: torch.Tensor, memory: bytes) -> tuple[Any, ...]:
    """What torch's `reduce_tensor` gives for a tensor on a GPU."""
    return (
        torch.Tensor,
        tensor.size(),
        tensor.stride(),
        tensor.storage_offset(),
        torch.storage.TypedStorage,
        tensor.dtype,
        0,
        memory,
        tensor.untyped_storage().nbytes(),
        512,
        False,
        b"counter",
        3,
        b"event",
        True,
    )


def test_handles_are_what_torch_gave_and_nothing_is_pickled() -> None:
    tensor = torch.zeros(5, 4)[1:, :].T
    args = reduced(tensor, b"\x00\xff" * 32)
    handle = encode_ipc("3f1c", args)
    assert decode_ipc(handle, list(tensor.shape), "float32") == args


def test_tensors_in_shared_memory(
    engine: TransferEngine, shared_memory: dict[bytes, torch.Tensor]
) -> None:
    tensors = new_tensors(4)
    for number, tensor in enumerate(tensors.values()):
        shared_memory[bytes([number])] = tensor.reshape(-1)
    handles = [
        {
            gpu: encode_ipc(gpu, reduced(tensor, memory)).model_dump()
            for gpu, memory in (("77ab", b"another GPU's"), ("3f1c", bytes([number])))
        }
        for number, tensor in enumerate(tensors.values())
    ]
    update(engine, info_of(tensors) | {"handles": handles})
    assert_loaded(engine, tensors)


class Workers:
    """Two of a server, on the queues that vLLM's executor has to them; one cannot load."""

    def __init__(self, failing: int) -> None:
        self.replies: list[deque[Any]] = [deque(), deque()]
        self._failing = failing

    def enqueue(self, call: tuple[str, tuple[Any, ...], dict[str, Any], None]) -> None:
        method, args, *_ = call
        for rank, replies in enumerate(self.replies):
            if method == "load" and rank == self._failing:
                replies.append((WorkerProc.ResponseStatus.FAILURE, "no memory"))
            else:
                replies.append((WorkerProc.ResponseStatus.SUCCESS, *args))


@pytest.mark.parametrize("failing", [0, 1])
def test_a_worker_that_fails_does_not_shift_the_answers_of_the_others(failing: int) -> None:
    workers = Workers(failing)
    executor = TensorParallelExecutor.__new__(TensorParallelExecutor)  # its start makes processes
    executor.is_failed, executor.futures_queue = False, deque()
    executor.rpc_broadcast_mq = workers
    executor.response_mqs = [
        SimpleNamespace(dequeue=lambda replies=replies, **_: replies.popleft())
        for replies in workers.replies
    ]
    for number in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            executor.collective_rpc("load", args=(f"version {number}",))
        assert executor.collective_rpc("sgg_echo", args=(number,)) == [number, number]
    assert not any(workers.replies)


def test_an_update_without_tensors_leaves_the_model_as_it_is(engine: TransferEngine) -> None:
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    engine.start_weight_update()
    engine.finish_weight_update()
    assert_loaded(engine, before)
