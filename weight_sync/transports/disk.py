"""`disk`: a file in the run's folder, on a file system that trainer and servers share."""

from pathlib import Path

from services.schemas.weights import Version
from weight_sync.transports.files import FileSender
from weight_sync.transports.receiver import FileReceiver


def disk_file(root: Path, version: Version) -> Path:
    """Where a version lies; `root` is the run's folder."""
    return root / "weights" / version.file_name


class DiskSender(FileSender):
    """Writes the file. The last versions stay, for servers that start later."""

    name = "disk"
    durable = True

    def file(self, version: Version) -> Path:
        """See `FileSender.file`."""
        return disk_file(self._settings.run.folder, version)

    def close(self) -> None:
        """See `Sender.close`: nothing is removed."""


class DiskReceiver(FileReceiver):
    """Reads the file; run, incarnation and version say where."""

    def file(self, version: Version) -> Path:
        """See `FileReceiver.file`."""
        return disk_file(self._settings.run.folder, version)
