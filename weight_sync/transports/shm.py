"""`shm`: a file in the host's shared memory, for servers on the trainer's host."""

import os
from pathlib import Path

from services.schemas.weights import DeltaBase, Version
from weight_sync.transports.files import FileSender, private_folder
from weight_sync.transports.receiver import FileReceiver
from weight_sync.transports.sender import NamedTensors, Prepared


def shm_file(run: str, version: Version) -> Path:
    """Where a version lies; never a path from a request.

    The runs of one user have one folder, so that a container can mount it whatever its run is.
    """
    return Path("/dev/shm") / f"sgg-{os.geteuid()}" / run / version.file_name


def shared_memory() -> str:
    """Which `/dev/shm` this process sees: another one has another kernel or another mount."""
    kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{kernel}/{Path('/dev/shm').stat().st_dev}"


class ShmSender(FileSender):
    """Writes the file. Servers read it themselves, late ones too."""

    name = "shm"

    def file(self, version: Version) -> Path:
        """See `FileSender.file`."""
        return shm_file(self._settings.run.name, version)

    def prepare(
        self, weights: NamedTensors, version: Version, base: DeltaBase | None = None
    ) -> Prepared:
        """See `FileSender.prepare`."""
        private_folder(self.file(version).parent.parent)
        return super().prepare(weights, version, base)


class ShmReceiver(FileReceiver):
    """Reads the file; run, incarnation and version say where."""

    def file(self, version: Version) -> Path:
        """See `FileReceiver.file`."""
        return shm_file(self._settings.run.name, version)
