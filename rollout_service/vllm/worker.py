"""What runs inside vLLM's worker processes: how a version's tensors get into the model.

vLLM finds this module there, as the class of its worker extension; importing it registers the
transfer engine. vLLM starts with one engine and keeps it, so this one takes all kinds of weights:
it loads files itself, and hands broadcasts and shared GPU memory on to vLLM's own engines.
"""

import logging
import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import (
    IPCWeightTransferEngine,
    IPCWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferInitInfo,
    NCCLWeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.platforms import current_platform

from services.host.orphans import end_with_parent
from services.schemas.weights import IpcHandle
from weight_sync.transports.device import on_daemon
from weight_sync.transports.ipc import decode_ipc
from weight_sync.transports.nccl import BUCKET_BYTES
from weight_sync.transports.sender import moving_s

BACKEND = "sgg-rl"
"""Name under which vLLM finds the transfer engine."""
BROADCAST_S = 50.0
"""A broadcast that takes longer, beside `moving_s` of its bytes, is given up; the trainer waits a
little longer than this."""


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """A `Rendezvous`; nothing where there is no broadcast to agree on."""

    unique_id: str | None = None
    world_size: int = 0
    rank: int = 0


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where a version's tensors are: in a file, in GPU memory by handle, or on their way."""

    file: str | None = None
    handles: list[dict[str, dict[str, Any]]] | None = None
    """An `IpcHandle` on each of the server's GPUs, for each name."""
    names: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    shapes: Sequence[list[int]] = ()


class TransferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]
    """Loads by vLLM's layerwise reload, as its own engines do, whichever way the tensors come."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        end_with_parent()  # not at the import: a process that is forked has imported it before
        self._args = args
        self._nccl = NCCLWeightTransferEngine(*args)
        self._ipc = IPCWeightTransferEngine(*args)
        self._joining: Future[None] | None = None
        self._is_open = False
        self._moe_kernels: dict[Any, Any] = {}
        """By method of a layer, while an update is open."""

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Begin to join the trainer's group; `is_connected` says when that is done.

        In a thread, for NCCL waits for ever for those that do not come, and sampling goes on.
        """
        if init_info.unique_id is None:
            return
        self._nccl.shutdown()
        self._nccl = NCCLWeightTransferEngine(*self._args)
        group = NCCLWeightTransferInitInfo(
            nccl_unique_id_b64=init_info.unique_id,
            rank_offset=init_info.rank,
            world_size=init_info.world_size,
            packed=True,
            packed_buffer_size_bytes=BUCKET_BYTES,
        )
        join = partial(self._nccl.init_transfer_engine, group)
        self._joining = on_daemon(join, self.device, "join")

    def is_connected(self) -> bool:
        """Whether the trainer's group is complete. Raises what went wrong."""
        if self._joining is None or not self._joining.done():
            return False
        self._joining.result()
        return True

    def start_weight_update(self) -> None:
        """Nothing yet: an update that brings no tensors of the model leaves it as it is."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Hand every tensor to the model's loader."""
        self._open()
        if update_info.file is not None:
            self._load_file(update_info.file)
        elif update_info.handles is not None:
            self._ipc.receive_weights(_ipc_update(update_info))
        else:
            self._receive_broadcast(update_info)

    def finish_weight_update(self) -> None:
        """Process what was loaded, in place."""
        if not self._is_open:
            return
        finalize_layerwise_reload(self.model, self.model_config)
        self._is_open = False
        if current_platform.is_cpu():
            self._repack_output_heads()
            self._give_moe_kernels_back()

    def shutdown(self) -> None:
        """Leave the trainer's group."""
        self._nccl.shutdown()

    def _open(self) -> None:
        """Take the layers' tensors away, so that each is built anew from what comes."""
        for layer in self.model.modules():
            # vLLM counts what a layer has got. What a failed update left would be counted with
            # what comes now, and the layer taken for complete before it is.
            info = get_layerwise_info(layer)
            info.loaded_weights.clear()
            info.load_numel = 0
        if current_platform.is_cpu():
            self._take_moe_kernels()
        initialize_layerwise_reload(self.model)
        self._is_open = True

    def _load_file(self, file: str) -> None:
        """The file is mapped, not read at once."""
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            self.model.load_weights((name, tensors.get_tensor(name)) for name in names)

    def _receive_broadcast(self, info: UpdateInfo) -> None:
        """NCCL waits for ever too: the group is left when the trainer stops sending."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._nccl.shutdown()

        sizes = (math.prod(shape) for shape in info.shapes)
        types = (getattr(torch, name).itemsize for name in info.dtypes)
        timeout_s = BROADCAST_S + moving_s(sum(map(mul, sizes, types)))
        watchdog = threading.Timer(timeout_s, give_up)
        watchdog.start()
        try:
            self._nccl.receive_weights(
                NCCLWeightTransferUpdateInfo(
                    names=list(info.names), dtype_names=list(info.dtypes), shapes=list(info.shapes)
                )
            )
            torch.accelerator.synchronize()
        finally:
            watchdog.cancel()
            if late.is_set():
                raise TimeoutError(f"the trainer's broadcast took longer than {timeout_s:.3g} s")

    def _take_moe_kernels(self) -> None:
        """Let experts that come be packed for the CPU: vLLM 0.32 does it only without a kernel."""
        for layer in self.model.modules():
            method: Any = getattr(layer, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                self._moe_kernels[method], method.moe_kernel = method.moe_kernel, None

    def _give_moe_kernels_back(self) -> None:
        """To the layers whose experts did not come; the others have new ones."""
        for method, kernel in self._moe_kernels.items():
            method.moe_kernel = method.moe_kernel or kernel
        self._moe_kernels.clear()

    def _repack_output_heads(self) -> None:
        """A head tied to the embedding gets no weights of its own: vLLM 0.32 leaves it as it was.

        On GPU it reads the embedding's tensor. On CPU it has a packed copy, which would stay old.
        """
        for layer in self.model.modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)


class WorkerExtension:
    """Methods that vLLM's workers gain.

    Importing this module registers the transfer engine.
    """

    def sgg_model_names(self, names: list[str]) -> Sequence[str | None]:
        """Checkpoint names as this model's; None for tensors that it does not load."""
        mapper = getattr(self.get_model(), "hf_to_vllm_mapper", None)  # type: ignore[attr-defined]
        return [mapper.map_name(name) for name in names] if mapper else names

    def sgg_is_connected(self) -> bool:
        """See `TransferEngine.is_connected`."""
        return self.weight_transfer_engine.is_connected()  # type: ignore[attr-defined, no-any-return]

    def sgg_echo(self, mark: str) -> str:
        """The mark again: see `rollout_service.vllm.executor`."""
        return mark

    def sgg_update_weights(self, update_info: dict[str, Any] | None) -> None:
        """All of an update in one call, in place of vLLM's three.

        Args:
            update_info: An `UpdateInfo`; None for an update that brings no tensors of the model.
        """
        self._weight_update_active = False  # a failed `finish_weight_update` leaves it set
        self.start_weight_update()  # type: ignore[attr-defined]
        if update_info is not None:
            self.update_weights(update_info)  # type: ignore[attr-defined]
        self.finish_weight_update()  # type: ignore[attr-defined]


def _ipc_update(info: UpdateInfo) -> IPCWeightTransferUpdateInfo:
    """As vLLM's engine takes it: each worker reads what is on its own GPU."""
    assert info.handles is not None
    return IPCWeightTransferUpdateInfo(
        names=list(info.names),
        dtype_names=list(info.dtypes),
        shapes=list(info.shapes),
        ipc_handles=[
            {
                gpu: decode_ipc(IpcHandle.model_validate(handle), shape, dtype)
                for gpu, handle in handles.items()
            }
            for handles, shape, dtype in zip(info.handles, info.shapes, info.dtypes, strict=True)
        ],
    )


def _is_of_use(record: logging.LogRecord) -> bool:
    return "Failed to load weights" not in str(record.msg)


# Of every layer that a partial version leaves as it is, at every update. That a whole version is
# whole was checked when it was staged.
logging.getLogger(initialize_layerwise_reload.__module__).addFilter(_is_of_use)

WeightTransferEngineFactory.register_engine(BACKEND, TransferEngine)
