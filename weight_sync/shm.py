"""`shm`: a file in shared memory, for servers on the trainer's host."""

from collections.abc import Mapping
from pathlib import Path

from services.schemas.weights import TensorEntry
from services.weights import private_folder, shm_file
from weight_sync.files import FileTransport
from weight_sync.sender import Weights


class ShmTransport(FileTransport):
    """Servers read the file themselves, late ones too."""

    name = "shm"
    servers_fetch = True

    def file(self, incarnation: int, policy_version: int) -> Path:
        """See `FileTransport.file`."""
        return shm_file(self._settings.run.name, incarnation, policy_version)

    def prepare(
        self, weights: Weights, incarnation: int, policy_version: int
    ) -> Mapping[str, TensorEntry]:
        """See `FileTransport.prepare`."""
        private_folder(self.file(incarnation, policy_version).parent.parent)
        return super().prepare(weights, incarnation, policy_version)
