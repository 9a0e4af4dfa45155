"""What the receiving end of a transport promises.

A version's bytes are at hand when it is staged, or will be when it is loaded.
"""

import asyncio
from abc import ABC, abstractmethod
from pathlib import Path

from services.schemas.weights import StageRequest, Version, WeightManifest
from services.settings import Settings
from weight_sync.engine import LoadableEngine, Staged
from weight_sync.transports.files import StagedFile, delta_file, stage_file
from weight_sync.transports.uploads.kept import Found, Uploads


class Receiver(ABC):
    """The server's end of one transport."""

    def __init__(self, settings: Settings, engine: LoadableEngine, uploads: Uploads) -> None:
        self._settings = settings
        self._engine = engine
        self._uploads = uploads

    async def check(self, manifest: WeightManifest) -> None:
        """Whether a version's tensors are those that the engine can load.

        Raises:
            InvalidInputError: They are not.
        """
        await self._engine.check_tensors(manifest.shapes, partial=manifest.partial)

    @abstractmethod
    async def stage(self, request: StageRequest) -> Staged:
        """Bring the version in, or agree on how it will come; what lies in a file is verified.

        Sampling goes on.

        Raises:
            InvalidInputError: The bytes are not what the manifest says, or this server lacks what
                this transport needs.
            NotFoundError: There are no bytes.
            EngineError: The trainer was not there.
        """


class FileReceiver(Receiver):
    """The trainer writes the file, this reads it."""

    @abstractmethod
    def file(self, version: Version) -> Path:
        """Where a version lies."""

    async def stage(self, request: StageRequest) -> StagedFile:
        """See `Receiver.stage`."""
        if request.manifest.delta is not None:
            return await self._uploads.patch(request, self._find)
        return await asyncio.to_thread(stage_file, self.file(request.version), request.manifest)

    def _find(self, version: Version) -> Found | None:
        whole = self.file(version)
        delta = delta_file(whole)
        if whole.exists():
            return Found(whole, is_delta=False)
        return Found(delta, is_delta=True) if delta.exists() else None
