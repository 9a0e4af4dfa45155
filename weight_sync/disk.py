"""`disk`: a file in the run's folder, on a file system that trainer and servers share."""

from pathlib import Path

from services.weights import disk_file
from weight_sync.files import FileTransport


class DiskTransport(FileTransport):
    """Servers read the file themselves; the last versions stay, for servers that start later."""

    name = "disk"
    servers_fetch = True
    durable = True

    def file(self, incarnation: int, policy_version: int) -> Path:
        """See `FileTransport.file`."""
        return disk_file(self._settings.run.folder, incarnation, policy_version)

    def close(self) -> None:
        """See `WeightTransport.close`: nothing is removed."""
