"""`http`: each server is sent the bytes, for hosts that share nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from services.http.clients.rollout import RolloutClient
from services.schemas.weights import PolicyInfo, Transport
from services.weights import temporary_folder
from weight_sync.files import FileTransport
from weight_sync.sender import Peer, Release, select


class HttpTransport(FileTransport):
    """Keeps the version in a file of its own, for all servers and for those that come late."""

    name: ClassVar[Transport] = "http"

    def file(self, incarnation: int, policy_version: int) -> Path:
        """See `FileTransport.file`. `TMPDIR` chooses the disk."""
        folder = temporary_folder(self._settings.run.name, "trainer")
        return folder / f"{incarnation}-{policy_version}.safetensors"

    async def stage(self, peers: Sequence[Peer], release: Release) -> list[Peer]:
        """See `WeightTransport.stage`: a server that has its bytes does not wait for others'."""
        manifest, request = release.manifest, release.stage(self.name)
        file = self.file(manifest.incarnation, manifest.policy_version)

        async def send(client: RolloutClient) -> PolicyInfo:
            await client.upload(file, manifest.incarnation, manifest.policy_version)
            return await client.stage(request)

        return await select(peers, lambda peer: peer.tell(send))
