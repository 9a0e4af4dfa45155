"""A server's place among the servers of its run: its GPUs, its record, its lanes.

The record in Redis lives as long as the server beats. Redis may go away and come back at any time:
the server goes on with what it knows.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from rollout_service.queue.lanes import Lanes
from rollout_service.server import RolloutServer
from services.errors import ConflictError, SettingsError, SggError, UnavailableError
from services.images import ImageStore
from services.redis.registry import GPU_TTL_S, HEARTBEAT_TTL_S, Registry
from services.waiting import ended

logger = logging.getLogger(__name__)

_GPU_POLL_S = 0.5
_LONGEST_FAULT_S = 4 * HEARTBEAT_TTL_S
"""A server that cannot beat for this long, though Redis answers, ends: it may do better anew."""


class Membership:
    """Holds the GPUs, beats, and knows which lanes are this server's."""

    def __init__(self, server: RolloutServer, registry: Registry, images: ImageStore) -> None:
        self.lanes = Lanes(server.server_id)
        self._images = images
        self._server = server
        self._registry = registry
        self._is_registered = False

    @asynccontextmanager
    async def joined(self) -> AsyncIterator["asyncio.Task[None]"]:
        """Take the server's GPUs, then beat; at the end give them back and leave the list.

        The task beats. It ends only with an error: the server cannot go on.

        Raises:
            SettingsError: Another server of this run has one of the GPUs.
        """
        await self._take_gpus()
        beating = asyncio.create_task(self._beat())
        try:
            yield beating
        finally:
            await ended(beating)
            try:
                await self._registry.unregister(self._server.server_id)
                if self._server.gpus:
                    await self._registry.release_gpus(self._server.gpus, self._server.server_id)
            except SggError as error:  # then the record expires
                logger.warning("%s", error)

    async def _take_gpus(self) -> None:
        """Wait at most one `GPU_TTL_S`, in which the claim of a killed predecessor expires."""
        gpus, deadline = self._server.gpus, time.monotonic() + GPU_TTL_S
        while gpus:
            try:
                holder = await self._registry.claim_gpus(gpus, self._server.server_id)
            except UnavailableError as error:
                self._server.note_error(error)  # tried again at every beat
                return
            if holder == self._server.server_id:
                return
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"{_named(gpus)} is taken by the rollout server {holder} of the same run: give "
                    "each server GPUs of its own with CUDA_VISIBLE_DEVICES (Slurm: --gpus-per-task)"
                )
            logger.info("%s is taken by %s; waiting", _named(gpus), holder)
            await asyncio.sleep(_GPU_POLL_S)

    async def _beat(self) -> None:
        """Beat for ever. A Redis that is away may come back; any other error ends it in time."""
        heard_at: float | None = None
        faulty_since: float | None = None
        while True:
            try:
                await self._tell_and_look()
                heard_at, faulty_since = time.monotonic(), None
            except UnavailableError as error:
                self._server.note_error(error)
            except Exception as error:  # whatever it is, the run does not hear of this server
                fault = SggError(f"cannot beat: {error or type(error).__name__}")
                self._server.note_error(fault)
                faulty_since = faulty_since or time.monotonic()
                if time.monotonic() - faulty_since > _LONGEST_FAULT_S:
                    raise fault from error
            silent = heard_at is not None and time.monotonic() - heard_at > HEARTBEAT_TTL_S
            self._server.unheard = self._server.last_error if silent or faulty_since else None
            await asyncio.sleep(HEARTBEAT_TTL_S / 3)

    async def _tell_and_look(self) -> None:
        await self._registry.set_aside()
        store = await asyncio.to_thread(self._images.seen_sign)
        record = self._server.record().model_copy(update={"image_store": store})
        if self._is_registered:
            await self._registry.heartbeat(record)
        else:
            await self._registry.register(record)
            self._is_registered = True
        servers = await self._registry.servers()
        self.lanes.share(s.server_id for s in servers if s.state in ("ready", "updating"))
        gpus, own_id = self._server.gpus, self._server.server_id
        if gpus and (holder := await self._registry.claim_gpus(gpus, own_id)) != own_id:
            raise ConflictError(
                f"{_named(gpus)} went to {holder} while Redis was away: stop one of both"
            )


def _named(gpus: Sequence[str]) -> str:
    return f"GPU {gpus[0]}" if len(gpus) == 1 else f"one of the GPUs {', '.join(gpus)}"
