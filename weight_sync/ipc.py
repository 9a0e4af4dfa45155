"""`ipc`: a server on a GPU of the trainer's reads the tensors where they are.

Each rank shares a whole version on its own GPU, and rank 0 tells each server what the rank on its
GPU shares. The tensors are all on the GPU at once, until the servers have committed: it needs room
for a second copy of the policy. CUDA shares memory with other processes only where PyTorch's
allocator uses no expandable segments.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future

from services.errors import SggError, WaitTimeoutError
from services.settings import Settings
from weight_sync.device import DeviceTransport, on_thread
from weight_sync.gpu_share import RankShare, SharedTensors, bare, gpu_uuid
from weight_sync.sender import SERVER_TIMEOUT_S, Peer, Release, select

logger = logging.getLogger(__name__)


class IpcTransport(DeviceTransport):
    """vLLM's IPC engine on the servers' side; those on no rank's GPU are sent the bytes.

    vLLM's own sender gathers the ranks' handles with pickle, inside the collectives of training.
    """

    name = "ipc"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._others: Future[list[RankShare]] = Future()
        self._others.set_result([])

    def expect_shares(self, others: "Future[list[RankShare]]") -> None:
        """See `WeightTransport.expect_shares`."""
        self._others = others

    async def stage(self, peers: Sequence[Peer], release: Release) -> list[Peer]:
        """See `WeightTransport.stage`: those on the ranks' GPUs."""
        others = await self._shares_of_others()
        gpus = {gpu_uuid(self._device), *(share.gpu for share in others)}
        return await super().stage([peer for peer in peers if _gpu(peer) in gpus], release)

    async def commit(self, peers: Sequence[Peer], release: Release) -> list[Peer]:
        """See `WeightTransport.commit`: the handles come with it."""
        if not peers:
            return []
        try:
            own = await on_thread(
                lambda: SharedTensors(self._tensors.items(), self._device),
                self._device,
                "room on the trainer's GPU",
            )
            try:
                shares = [own.share, *await self._shares_of_others()]
                requests = {share.gpu: release.commit(share.handles) for share in shares}

                async def commit(peer: Peer) -> bool:
                    return await peer.tell(lambda c: c.commit(requests[_gpu(peer)]))

                return await select(peers, commit)
            finally:
                await on_thread(own.close, self._device, "the end of sharing")
        except SggError as error:
            logger.warning("%s; who missed the version is sent it over HTTP", error)
            return []

    async def _shares_of_others(self) -> list[RankShare]:
        try:
            async with asyncio.timeout(SERVER_TIMEOUT_S):
                return await asyncio.wrap_future(self._others)
        except TimeoutError as error:
            raise WaitTimeoutError(
                f"waited {SERVER_TIMEOUT_S:g} s for the other ranks to share their weights"
            ) from error


def _gpu(peer: Peer) -> str:
    return bare(peer.record.gpu or "")
