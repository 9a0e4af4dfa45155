"""`ipc`: a server on the trainer's own GPU reads the tensors where they are.

They are all on the GPU at once, until the server has committed: it needs room for a second copy of
the policy. CUDA shares memory with other processes only where PyTorch's allocator uses no
expandable segments.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from services.errors import SettingsError, SggError
from services.settings import Settings
from services.weights import encode_ipc
from trainer.transports.base import Peer, Release, commit_all
from trainer.transports.device import CommitClient, DeviceTransport, TensorSource, on_thread

logger = logging.getLogger(__name__)


class IpcTransport(DeviceTransport):
    """vLLM's `IPCTrainerWeightTransferEngine` shares; servers on other GPUs are sent the bytes."""

    name = "ipc"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        if settings.trainer.num_ranks > 1:
            # vLLM's engine collects the handles of all ranks; here rank 0 alone has them.
            raise SettingsError(
                "weights.transport = 'ipc' is for a trainer of one rank: use nccl, or num_ranks = 1"
            )

    async def stage(self, peers: Sequence[Peer], release: Release) -> list[Peer]:
        """See `WeightTransport.stage`: those on this GPU."""
        gpu = _bare(str(torch.cuda.get_device_properties(self._device).uuid))
        here = [peer for peer in peers if _bare(peer.record.gpu or "") == gpu]
        return await super().stage(here, release)

    async def commit(self, peers: Sequence[Peer], release: Release) -> list[Peer]:
        """See `WeightTransport.commit`: the handles come with it."""
        if not peers:
            return []
        served: list[Peer] = []

        async def commit(update: dict[str, Any]) -> None:
            handles = {}
            for name, by_gpu in zip(update["names"], update["ipc_handles"], strict=True):
                ((gpu, args),) = by_gpu.items()
                handles[name] = encode_ipc(gpu, args)
            served.extend(await commit_all(peers, release.commit(handles)))

        client = CommitClient(commit)
        try:
            await on_thread(lambda: self._send(client), self._device, "servers to read GPU memory")
        except SggError as error:
            logger.warning("%s; who missed the version is sent it over HTTP", error)
        return served

    def _send(self, client: CommitClient) -> None:
        """Share the tensors as long as the commits take."""
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerWeightTransferEngine

        source = TensorSource(self._tensors, self._device)
        IPCTrainerWeightTransferEngine(client=client, source=source, packed=False).send_weights()


def _bare(uuid: str) -> str:
    """NVIDIA's library puts `GPU-` before what CUDA says."""
    return uuid.removeprefix("GPU-")
