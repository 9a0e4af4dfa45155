"""`shm`: a file in shared memory, for servers on the trainer's host."""

from pathlib import Path

from services.weights import shm_file
from trainer.transports.files import FileTransport


class ShmTransport(FileTransport):
    """Servers read the file themselves, late ones too."""

    name = "shm"
    servers_fetch = True

    def file(self, incarnation: int, policy_version: int) -> Path:
        """See `FileTransport.file`."""
        return shm_file(self._settings.run.name, incarnation, policy_version)
