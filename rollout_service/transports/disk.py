"""`disk`: a file in the run's folder, on a file system that trainer and servers share."""

import asyncio

from rollout_service.transports.base import Transport
from rollout_service.transports.safetensors_file import StagedFile, stage_file
from services.schemas.weights import StageRequest
from services.settings import Settings
from services.weights import disk_file


class DiskTransport(Transport):
    """The trainer writes, this reads; incarnation and version say where."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.run.folder

    async def stage(self, request: StageRequest) -> StagedFile:
        """See `Transport.stage`."""
        manifest = request.manifest
        path = disk_file(self._folder, manifest.incarnation, manifest.policy_version)
        return await asyncio.to_thread(stage_file, path, manifest.tensors)
