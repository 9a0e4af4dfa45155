"""`shm`: a file in this host's shared memory."""

import asyncio

from rollout_service.transports.base import Transport
from rollout_service.transports.safetensors_file import StagedFile, stage_file
from services.schemas.weights import StageRequest
from services.settings import Settings
from services.weights import shm_file


class ShmTransport(Transport):
    """The trainer writes, this reads; run, incarnation and version say where."""

    def __init__(self, settings: Settings) -> None:
        self._run = settings.run.name

    async def stage(self, request: StageRequest) -> StagedFile:
        """See `Transport.stage`."""
        manifest = request.manifest
        path = shm_file(self._run, manifest.incarnation, manifest.policy_version)
        return await asyncio.to_thread(stage_file, path, manifest.tensors)
