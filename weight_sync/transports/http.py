"""`http`: each server is sent the bytes, for hosts that share nothing."""

from collections.abc import Sequence
from pathlib import Path

from services.http.clients.rollout import RolloutClient
from services.schemas.weights import PolicyInfo, StageRequest, Version
from weight_sync.transports.files import FileSender, StagedFile, temporary_folder
from weight_sync.transports.receiver import Receiver
from weight_sync.transports.sender import CheckedManifest, Peer, select


class HttpSender(FileSender):
    """Keeps the version in a file of its own, for all servers and for those that come late."""

    name = "http"

    def file(self, version: Version) -> Path:
        """See `FileSender.file`. `TMPDIR` chooses the disk."""
        return temporary_folder(self._settings.run.name, "trainer") / version.file_name

    async def stage(self, peers: Sequence[Peer], checked: CheckedManifest) -> list[Peer]:
        """See `Sender.stage`: a server that has its bytes does not wait for others'."""
        request = checked.stage(self.name)

        async def send(client: RolloutClient) -> PolicyInfo:
            await client.upload(self.file(checked.version), checked.version)
            return await client.stage(request)

        return await select(peers, lambda peer: peer.tell(send))


class HttpReceiver(Receiver):
    """The file has come before: `PUT /v1/weights/files/INCARNATION/VERSION`."""

    async def stage(self, request: StageRequest) -> StagedFile:
        """See `Receiver.stage`."""
        return await self._uploads.stage(request)
