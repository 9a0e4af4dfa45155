"""`nccl`: one broadcast from the trainer's GPU to all those of all servers.

Servers join the group while they stage and receive while they commit. The group lasts as long as
the same servers are there. It is all or nothing: when one fails in it, all that miss the version
are sent it over HTTP, and the next version gets a new group.
"""

import asyncio
import base64
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from services.errors import SggError, UnavailableError
from services.schemas.weights import Rendezvous, StageRequest
from weight_sync.engine import Staged
from weight_sync.transports.device import CommitClient, DeviceSender, TensorSource, on_thread
from weight_sync.transports.receiver import Receiver
from weight_sync.transports.sender import CheckedManifest, Peer, select

logger = logging.getLogger(__name__)

BUCKET_BYTES = 256 * 1024 * 1024
"""Tensors are broadcast in buckets of this size; each side holds two of them on the GPU."""


@dataclass(slots=True, kw_only=True)
class _Group:
    members: dict[str, int]
    """Each server's number of GPUs by its id, in the order of their ranks from 1; a restarted
    server has a new id."""
    unique_id: bytes
    communicator: Any = None
    """vLLM's `PyNcclCommunicator`, once all have joined."""

    @property
    def world_size(self) -> int:
        """The trainer, and every GPU of every server."""
        return 1 + sum(self.members.values())

    def rendezvous(self, server_id: str) -> Rendezvous:
        """What a server needs to know to join. Its GPUs have ranks in a row."""
        before = takewhile(lambda member: member != server_id, self.members)
        return Rendezvous(
            unique_id=base64.b64encode(self.unique_id).decode(),
            world_size=self.world_size,
            rank=1 + sum(self.members[member] for member in before),
        )


class NcclSender(DeviceSender):
    """vLLM's `NCCLTrainerWeightTransferEngine` sends; this brings the servers together."""

    name = "nccl"
    packed = True
    """Whether tensors are sent in buckets, rather than one by one."""
    _group: _Group | None = None

    async def stage(self, peers: Sequence[Peer], checked: CheckedManifest) -> list[Peer]:
        """See `Sender.stage`: all that answer, or none."""
        present = await select(peers, Peer.can_take)  # nobody must wait for the others
        if not present:
            return []
        members = {peer.record.server_id: len(peer.record.gpus) for peer in present}
        if self._group is None or self._group.members != members:
            await self._leave()
            self._group = _Group(members=members, unique_id=self.new_unique_id())
        try:
            await self._meet(self._group, present, checked)
        except SggError as error:
            logger.warning("no broadcast: %s; the version is sent over HTTP", error)
            await self._leave()
            return []
        return present

    async def commit(self, peers: Sequence[Peer], checked: CheckedManifest) -> list[Peer]:
        """See `Sender.commit`: servers receive while they commit."""
        group = self._group
        if group is None or not peers:
            return []
        served: list[Peer] = []

        async def commit(_: dict[str, Any]) -> None:
            served.extend(await super(NcclSender, self).commit(peers, checked))

        client = CommitClient(commit)
        what = f"the broadcast to {_names(peers)}"
        try:
            send, size = (lambda: self._send(group, client)), checked.num_bytes
            await on_thread(send, self._device, what, num_bytes=size)
        except SggError as error:
            logger.warning("%s; who missed the version is sent it over HTTP", error)
            await self._leave()
        if len(served) < len(peers):
            await self._leave()
        return served

    def new_unique_id(self) -> bytes:
        """Open the meeting point of a new group, in this process."""
        from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

        return bytes(NCCLLibrary().ncclGetUniqueId())

    def join(self, unique_id: bytes, world_size: int) -> Any:
        """Wait for the servers, as rank 0; returns the communicator."""
        from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

        return uid_init_process_group(unique_id, 0, world_size, self._device)

    async def _meet(self, group: _Group, peers: Sequence[Peer], checked: CheckedManifest) -> None:
        """Have all servers stage and, where it is not there yet, form the group.

        Raises:
            SggError: One of them did not stage, or not join.
        """
        joining = None
        if group.communicator is None:
            what = f"{_names(peers)} to join the NCCL group"
            size = group.world_size
            work = on_thread(lambda: self.join(group.unique_id, size), self._device, what)
            joining = asyncio.create_task(work)

        async def stage(peer: Peer) -> bool:
            request = checked.stage(self.name, group.rendezvous(peer.record.server_id))
            return await peer.tell(lambda c: c.stage(request))

        staged = await select(peers, stage)
        if len(staged) < len(peers):
            if joining is not None:
                joining.cancel()
            missing = [peer for peer in peers if peer not in staged]
            raise UnavailableError(f"{_names(missing)} did not join")
        if joining is not None:
            group.communicator = await joining

    def _send(self, group: _Group, client: CommitClient) -> None:
        """Broadcast while the commits are open. Blocks, at worst for ever."""
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

        engine = NCCLTrainerWeightTransferEngine(
            client=client,
            source=TensorSource(self._tensors, self._device),
            packed=self.packed,
            packed_buffer_size_bytes=BUCKET_BYTES,
        )
        engine.model_update_group = group.communicator
        engine.send_weights()

    async def _leave(self) -> None:
        """Give the group up; a member that hangs in it is not waited for."""
        group, self._group = self._group, None
        if group is not None and group.communicator is not None:
            with suppress(SggError):
                await on_thread(group.communicator.destroy, self._device, "the group's end")


class StagedBroadcast(Staged):
    """What the trainer will send."""

    attempts = 1


class NcclReceiver(Receiver):
    """Joins the trainer's group at the first stage, and again whenever it is a new one."""

    _joined: Rendezvous | None = None

    async def stage(self, request: StageRequest) -> StagedBroadcast:
        """See `Receiver.stage`."""
        assert request.rendezvous is not None  # `StageRequest` checks it
        if request.rendezvous != self._joined:
            self._joined = None
            await self._engine.connect(request.rendezvous)
            self._joined = request.rendezvous
        return StagedBroadcast()


def _names(peers: Sequence[Peer]) -> str:
    return ", ".join(peer.record.url for peer in peers)
