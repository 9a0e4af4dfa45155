"""What a rollout server asks of vLLM's engine on a GPU, against the installed one."""

import base64
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
from vllm import AsyncEngineArgs
from vllm.config import VllmConfig
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.worker.gpu_worker import Worker

from rollout_service.vllm import engine as vllm_engine
from rollout_service.vllm.engine import VllmEngine
from rollout_service.vllm.worker import InitInfo, UpdateInfo, WorkerExtension
from services.schemas.weights import (
    CommitRequest,
    IpcHandle,
    Rendezvous,
    TensorEntry,
    WeightManifest,
)
from services.settings import Settings
from weight_sync.engine import Staged
from weight_sync.transports.files import StagedFile
from weight_sync.transports.ipc import StagedHandles
from weight_sync.transports.lora import StagedAdapter
from weight_sync.transports.nccl import StagedBroadcast

HANDLE = IpcHandle(
    gpu="3f1c", stride=[1], offset=0, memory="AAAA", storage_bytes=4, storage_offset_bytes=0,
    ref_counter="AAAA", ref_counter_offset=0, event="AAAA", event_sync_required=True,
)  # fmt: skip

UNIQUE_ID = base64.b64encode(bytes(128)).decode()


async def in_the_worker(method: str, args: tuple[Any, ...] = ()) -> list[Any]:
    """What `collective_rpc` does there: call a method of the worker by its name."""
    inspect.signature(getattr(WorkerExtension, method)).bind(Mock(), *args)
    return [list(args[0]) if args and args[0] else True]


@pytest.fixture
def llm() -> Any:
    llm = create_autospec(AsyncLLM, instance=True)
    llm.collective_rpc.side_effect = in_the_worker
    # Set by its `__init__`:
    llm.vllm_config = create_autospec(VllmConfig, instance=True)
    llm.engine_core = create_autospec(AsyncMPClient, instance=True)
    return llm


@pytest.fixture
def engine(llm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VllmEngine:
    sections = {
        "run": {"root": str(tmp_path)},
        "model": {"path": "assets/toy-start"},
        "data": {"train": "unused"},
        "weights": {"transport": "lora"},
    }
    monkeypatch.setattr(vllm_engine, "own_gpus", lambda _: ("GPU-3f1c",))
    configure = create_autospec(AsyncEngineArgs.create_engine_config)
    monkeypatch.setattr(AsyncEngineArgs, "create_engine_config", configure)
    build = create_autospec(AsyncLLM.from_vllm_config, return_value=llm)
    monkeypatch.setattr(AsyncLLM, "from_vllm_config", build)
    monkeypatch.setattr(vllm_engine, "VllmChat", Mock())  # `test_calls.py` has its calls
    return VllmEngine(Settings.model_validate(sections))


def manifest() -> WeightManifest:
    entry = TensorEntry(shape=[1], dtype="float32")
    return WeightManifest(
        policy_version=1, incarnation=1, step=1, tensors={"a": entry}, vision_trained=True
    )


async def test_a_servers_life(engine: VllmEngine, llm: Any, tmp_path: Path) -> None:
    await engine.start()
    await engine.check_tensors({}, partial=True)
    await engine.pause()
    await engine.resume()
    await engine.check_health()
    await engine.stop()
    llm.shutdown.assert_called_once()
    called = {name for name, *_ in llm.method_calls}
    assert {"resume_generation", "check_health", "collective_rpc"} <= called
    llm.engine_core.pause_scheduler_async.assert_awaited_once_with(mode="keep", clear_cache=False)


async def test_joining_a_group(engine: VllmEngine, llm: Any) -> None:
    await engine.start()
    await engine.connect(Rendezvous(unique_id=UNIQUE_ID, world_size=2, rank=1))
    request = llm.init_weight_transfer_engine.call_args.args[0]
    assert InitInfo(**request.init_info).rank == 1


def shared() -> StagedHandles:
    staged = StagedHandles({"a"}, [HANDLE.gpu])
    handles = {"a": HANDLE}
    staged.take(CommitRequest(policy_version=1, checksum="0" * 64, ipc_handles=handles))
    return staged


def update_of(llm: Any) -> Any:
    """What the workers were told of the new weights."""
    (name,), told = llm.collective_rpc.call_args
    assert name == "sgg_update_weights"
    return told["args"]


@pytest.mark.parametrize("make", [partial(StagedFile, -1), StagedBroadcast, shared])
async def test_new_weights(engine: VllmEngine, llm: Any, make: Callable[[], Staged]) -> None:
    weights = make()
    await engine.start()
    await engine.load_weights(weights, manifest())
    (info,) = update_of(llm)
    assert (UpdateInfo(**info).handles is not None) == isinstance(weights, StagedHandles)
    llm.update_weight_version.assert_awaited_once_with("1")
    llm.reset_encoder_cache.assert_awaited_once()


async def test_a_new_adapter(engine: VllmEngine, llm: Any, tmp_path: Path) -> None:
    await engine.start()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    await engine.load_weights(StagedAdapter(adapter), manifest())
    assert update_of(llm) == (None,)
    llm.add_lora.assert_awaited_once()


def test_the_worker_for_gpus_takes_our_methods() -> None:
    """VLLM refuses an extension that has a name of the worker's."""
    ours = {name for name in vars(WorkerExtension) if not name.startswith("__")}
    assert ours & set(dir(Worker)) == set()
    assert hasattr(Worker, "get_model")
    source = inspect.getsource(Worker)
    for used in ("weight_transfer_engine", "_weight_update_active"):
        assert f"self.{used}" in source
