"""The folder of a server's own files of versions, and the room in it."""

import errno
import fcntl
import mmap
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from services.errors import NoRoomError, SettingsError
from services.host.addresses import host_and_port
from services.settings import Settings
from weight_sync.mapped import copies_on_write, make_room
from weight_sync.transports.files import private_folder, temporary_folder

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The disk, the user's share of it, or the largest file that this process may write."""
_PIECE_BYTES = 4 * 2**20
"""Received and hashed at once: much for a thread that waits for Python's global lock each
time, and little for a processor's cache."""


def spool_folder(settings: Settings) -> Path:
    """The same at each start, so that a killed process's leftovers are found; one for each host."""
    _, port = host_and_port(settings.rollout.url)
    return temporary_folder(settings.run.name, str(port))


class SpoolFile:
    """A file that is written through its memory, and again for a later version.

    A file's new pages cost more than the bytes that come into them. The pages of a version that is
    dropped stay mapped, and the next one gets them.
    """

    def __init__(self, path: Path) -> None:
        """A new file."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.descriptor = os.open(path, flags, 0o600)
        self.path = path
        self._copies_on_write = copies_on_write(self.descriptor)
        self._memory: mmap.mmap | None = None

    def pieces(self, num_bytes: int) -> Iterator[memoryview]:
        """All its bytes, of which there are so many now, to be written in this order."""
        is_new = self._memory is None or len(self._memory) != num_bytes
        if is_new:
            self._memory = None
            os.ftruncate(self.descriptor, num_bytes)
            self._memory = mmap.mmap(self.descriptor, num_bytes) if num_bytes else None
        view = memoryview(self._memory or b"")
        for start in range(0, num_bytes, _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            if is_new:  # a write to a mapped page that has no room on the disk ends the process
                os.posix_fallocate(self.descriptor, start, len(piece))
            if self._copies_on_write:
                make_room(piece)
            yield piece

    def is_shared(self) -> bool:
        """Whether somebody else may have it open: the kernel gives a lease of it to nobody then."""
        try:
            # Who opens it meanwhile has the kernel send a signal, and SIGIO would end the process.
            fcntl.fcntl(self.descriptor, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:  # also where the file system has no leases
            return True
        return False

    def rename(self, name: str) -> None:
        """Name it anew in its folder. Those that have an earlier file of that name open keep it."""
        self.path = self.path.rename(self.path.with_name(name))

    def remove(self) -> None:
        """Remove it; those that have it open keep it. Safe to call twice."""
        if self.descriptor >= 0:
            self.path.unlink(missing_ok=True)
            self.release()

    def release(self) -> None:
        """Close it, where another file has its name."""
        os.close(self.descriptor)
        self.descriptor, self._memory = -1, None


class Spool:
    """A private folder with one draft at a time, and the files that drafts became."""

    def __init__(self, settings: Settings) -> None:
        """Removes what a killed process left. The folder is made when something comes.

        Raises:
            SettingsError: Something that is not this user's is in its place.
        """
        self.folder = spool_folder(settings)
        if os.path.lexists(self.folder):
            try:
                shutil.rmtree(private_folder(self.folder))
            except OSError as error:
                raise SettingsError(
                    f"cannot remove {self.folder}, which an earlier process left: {error}"
                ) from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around what writes here.

        Raises:
            NoRoomError: The disk is full.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise NoRoomError(
                f"this server's spool folder {self.folder} has no room ({error.strerror}): free "
                "some, or start the server with TMPDIR on a larger disk; it takes three versions"
            ) from error

    def new_file(self, name: str, spare: SpoolFile | None = None) -> SpoolFile:
        """A file to be written, in place of an earlier one of that name.

        Args:
            name: The file's, in this folder.
            spare: One that is not needed any more. It is the new one if nobody has it open, else it
                is removed.
        """
        if spare is not None:
            with suppress(FileNotFoundError):  # a cleaner of temporary folders has been here
                spare.rename(name)  # first, so that nobody opens it from here on
                if not spare.is_shared():
                    return spare
            spare.remove()
        path = private_folder(self.folder) / name
        path.unlink(missing_ok=True)
        return SpoolFile(path)

    def new_folder(self, prefix: str) -> Path:
        """An empty folder, which the caller removes."""
        return Path(tempfile.mkdtemp(prefix=prefix, dir=private_folder(self.folder)))

    def remove(self) -> None:
        """Remove the folder. Safe to call twice."""
        shutil.rmtree(self.folder, ignore_errors=True)
