"""`ipc`: a server on GPUs of the trainer's reads the tensors where they are.

Each rank shares a whole version on its own GPU, and rank 0 tells each server what the ranks on its
GPUs share. The tensors are all on the GPU at once, until the servers have committed: it needs room
for a second copy of the policy. CUDA shares memory with other processes only where PyTorch's
allocator uses no expandable segments.
"""

import asyncio
import base64
import logging
from collections.abc import Iterable, Sequence, Set
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from services.errors import InvalidInputError, SggError, WaitTimeoutError
from services.schemas.weights import CommitRequest, IpcHandle, RankShare, StageRequest
from services.settings import Settings
from weight_sync.engine import Staged
from weight_sync.transports.device import DeviceSender, on_thread
from weight_sync.transports.receiver import Receiver
from weight_sync.transports.sender import SERVER_TIMEOUT_S, CheckedManifest, Peer, moving_s, select

logger = logging.getLogger(__name__)


class IpcSender(DeviceSender):
    """vLLM's IPC engine is on the servers' side; those on no rank's GPU are sent the bytes.

    vLLM's own sender gathers the ranks' handles with pickle, inside the collectives of training.
    """

    name = "ipc"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._others: Future[list[RankShare]] = Future()
        self._others.set_result([])

    def expect_shares(self, others: "Future[list[RankShare]]") -> None:
        """See `Sender.expect_shares`."""
        self._others = others

    async def stage(self, peers: Sequence[Peer], checked: CheckedManifest) -> list[Peer]:
        """See `Sender.stage`: those all of whose GPUs are the ranks'."""
        others = await self._shares_of_others(checked.num_bytes)
        gpus = {gpu_uuid(self._device), *(share.gpu for share in others)}
        within = [peer for peer in peers if peer.record.gpus and gpus.issuperset(_gpus(peer))]
        return await super().stage(within, checked)

    async def commit(self, peers: Sequence[Peer], checked: CheckedManifest) -> list[Peer]:
        """See `Sender.commit`: the handles come with it."""
        if not peers:
            return []
        size = checked.num_bytes
        try:
            own = await on_thread(
                lambda: SharedTensors(self._tensors.items(), self._device),
                self._device,
                "room on the trainer's GPU",
                num_bytes=size,
            )
            try:
                shares = [own.share, *await self._shares_of_others(size)]
                handles = {share.gpu: share.handles for share in shares}

                async def commit(peer: Peer) -> bool:
                    request = checked.commit([handles[gpu] for gpu in _gpus(peer)])
                    return await peer.tell(lambda c: c.commit(request), num_bytes=size)

                return await select(peers, commit)
            finally:
                await on_thread(own.close, self._device, "the end of sharing")
        except SggError as error:
            logger.warning("%s; who missed the version is sent it over HTTP", error)
            return []

    async def _shares_of_others(self, num_bytes: int) -> list[RankShare]:
        """Each of them has as many bytes to share."""
        timeout_s = SERVER_TIMEOUT_S + moving_s(num_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(self._others)
        except TimeoutError as error:
            raise WaitTimeoutError(
                f"waited {timeout_s:.3g} s for the other ranks to share their weights"
            ) from error


class SharedTensors:
    """A version's tensors in a GPU's memory, until `close`."""

    def __init__(self, weights: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
        """Shares them as `torch.multiprocessing` does, where they are if that is the GPU.

        Args:
            weights: Names and tensors of a version.
            device: The GPU.
        """
        gpu = gpu_uuid(device)
        self._tensors = {name: tensor.to(device).contiguous() for name, tensor in weights}
        handles = {
            name: encode_ipc(gpu, reduce_tensor(tensor)[1])
            for name, tensor in self._tensors.items()
        }
        self.share = RankShare(gpu=gpu, handles=handles)

    def close(self) -> None:
        """Give the memory back; nobody may read it any more."""
        self._tensors.clear()
        torch.cuda.ipc_collect()


class StagedHandles(Staged):
    """Names that the commit has to give handles for."""

    attempts = 1

    def __init__(self, names: Set[str], gpus: Sequence[str]) -> None:
        self._names = names
        self._gpus = gpus
        self.handles: dict[str, dict[str, IpcHandle]] = {}
        """By tensor name and GPU, as `bare` writes it."""

    def take(self, request: CommitRequest) -> None:
        """See `Staged.take`."""
        shares = [request.ipc_handles or {}, *request.more_ipc_handles]
        differing = sorted({name for share in shares for name in share.keys() ^ self._names})
        if differing:
            raise InvalidInputError(
                f"ipc_handles and the manifest differ in {len(differing)} tensors, such as "
                f"{differing[0]}: send a handle for each tensor"
            )
        handles = {
            name: {bare(share[name].gpu): share[name] for share in shares} for name in self._names
        }
        own = {bare(gpu) for gpu in self._gpus}
        for found in handles.values():
            if found.keys() != own:
                raise InvalidInputError(
                    f"the handles are of GPU {', '.join(sorted(found))}; this server is on "
                    f"{', '.join(self._gpus)}: send a handle for each of its GPUs"
                )
        self.handles = handles


class IpcReceiver(Receiver):
    """Stage agrees on the manifest; the handles come with the commit."""

    async def stage(self, request: StageRequest) -> StagedHandles:
        """See `Receiver.stage`."""
        return StagedHandles(request.manifest.tensors.keys(), self._engine.gpus)


def encode_ipc(gpu: str, args: Sequence[Any]) -> IpcHandle:
    """A tensor's place in GPU memory, as a message.

    Args:
        gpu: UUID of the GPU.
        args: Arguments of `rebuild_cuda_tensor`, as torch's `reduce_tensor` gives them for a CUDA
            tensor (torch/multiprocessing/reductions.py). The manifest has shape and dtype.
    """
    _, _, stride, offset, _, _, _, memory, size, start, _, counter, counter_at, event, sync = args
    return IpcHandle(
        gpu=gpu,
        stride=list(stride),
        offset=offset,
        memory=base64.b64encode(memory).decode(),
        storage_bytes=size,
        storage_offset_bytes=start,
        ref_counter=base64.b64encode(counter).decode(),
        ref_counter_offset=counter_at,
        event=base64.b64encode(event).decode(),
        event_sync_required=sync,
    )


def decode_ipc(handle: IpcHandle, shape: Sequence[int], dtype: str) -> tuple[Any, ...]:
    """Arguments of torch's `rebuild_cuda_tensor`, which `encode_ipc` has read."""
    return (
        torch.Tensor,
        torch.Size(shape),
        tuple(handle.stride),
        handle.offset,
        torch.storage.TypedStorage,
        getattr(torch, dtype),
        0,  # vLLM puts the worker's own device here
        base64.b64decode(handle.memory),
        handle.storage_bytes,
        handle.storage_offset_bytes,
        False,
        base64.b64decode(handle.ref_counter),
        handle.ref_counter_offset,
        base64.b64decode(handle.event),
        handle.event_sync_required,
    )


def gpu_uuid(device: torch.device) -> str:
    """UUID of a GPU of this process."""
    return bare(str(torch.cuda.get_device_properties(device).uuid))


def bare(gpu: str) -> str:
    """A GPU's UUID as CUDA and torch write it; NVIDIA's library puts `GPU-` in front."""
    return gpu.removeprefix("GPU-")


def _gpus(peer: Peer) -> list[str]:
    return [bare(gpu) for gpu in peer.record.gpus]
