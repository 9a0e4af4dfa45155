"""`shm`: a file in the host's shared memory, for servers on the trainer's host."""

import fcntl
import os
from pathlib import Path

from services.errors import ConflictError
from services.schemas.weights import DeltaBase, Version
from services.settings import Settings
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

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._claim: int | None = None
        """Descriptor of the locked file that says whose run of this name this host has"""

    def file(self, version: Version) -> Path:
        """See `FileSender.file`."""
        return shm_file(self._settings.run.name, version)

    def prepare(
        self, weights: NamedTensors, version: Version, base: DeltaBase | None = None
    ) -> Prepared:
        """See `FileSender.prepare`.

        Raises:
            ConflictError: Another run of this name is going on here: each would remove the other's
                versions.
        """
        folder = self.file(version).parent
        private_folder(folder.parent)
        if self._claim is None:
            self._claim = _claim(folder.with_name(f".{folder.name}.lock"), self._settings)
        return super().prepare(weights, version, base)

    def close(self) -> None:
        """See `Sender.close`."""
        super().close()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None


def _claim(lock: Path, settings: Settings) -> int:
    """Lock the name of a run on this host, as long as the descriptor is open.

    A trainer that replaces one of its own run, which may stand still and still hold it, goes on.
    """
    mine = str(settings.run.folder.resolve())
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = os.pread(descriptor, 4096, 0).decode()
        if other == mine:
            return descriptor
        os.close(descriptor)
        raise ConflictError(
            f"run.name = {settings.run.name!r}: a run of this name goes on in {other}, and one "
            "host's runs share a place for weights by name; give this one another name"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, mine.encode(), 0)
    return descriptor


class ShmReceiver(FileReceiver):
    """Reads the file; run, incarnation and version say where."""

    def file(self, version: Version) -> Path:
        """See `FileReceiver.file`."""
        return shm_file(self._settings.run.name, version)
