"""`http`: each server is sent the bytes, for hosts that share nothing."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from services.http.clients.rollout import RolloutClient
from services.schemas.weights import PolicyInfo, StageRequest, Version
from services.settings import Settings
from weight_sync.transports.files import FileSender, StagedFile, delta_file, temporary_folder
from weight_sync.transports.receiver import Receiver
from weight_sync.transports.sender import CheckedManifest, Peer, select


class HttpSender(FileSender):
    """Keeps the version in a file of its own, for all servers and for those that come late."""

    name = "http"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._writing = asyncio.Lock()

    def file(self, version: Version) -> Path:
        """See `FileSender.file`. `TMPDIR` chooses the disk."""
        return temporary_folder(self._settings.run.name, "trainer") / version.file_name

    async def stage(self, peers: Sequence[Peer], checked: CheckedManifest) -> list[Peer]:
        """See `Sender.stage`: a server that has its bytes does not wait for others'.

        A delta is refused by a server without the version before, which is seeded then.
        """
        file = self.file(checked.version)
        return await self._give(
            peers, checked, delta_file(file) if checked.manifest.delta is not None else file
        )

    async def seed(self, peer: Peer, checked: CheckedManifest) -> bool:
        """See `Sender.seed`: the version is sent whole."""
        file = self.file(checked.version)
        async with self._writing:
            if not file.exists():
                await asyncio.to_thread(self.write_again, file)
        staged = await self._give([peer], checked, file)
        return bool(await self.commit(staged, checked))

    async def _give(
        self, peers: Sequence[Peer], checked: CheckedManifest, file: Path
    ) -> list[Peer]:
        request = checked.stage(self.name)

        async def send(client: RolloutClient) -> PolicyInfo:
            await client.upload(file, checked.version)
            return await client.stage(request)

        return await select(peers, lambda peer: peer.tell(send))


class HttpReceiver(Receiver):
    """The file has come before: `PUT /v1/weights/files/INCARNATION/VERSION`."""

    async def stage(self, request: StageRequest) -> StagedFile:
        """See `Receiver.stage`."""
        return await self._uploads.stage(request)
