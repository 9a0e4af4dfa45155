"""A server's own folder for what is sent to it. It goes with the server."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.errors import NoRoomError, SettingsError
from services.host.addresses import host_and_port
from services.settings import Settings
from services.weights import private_folder, temporary_folder

_DRAFT = "upload.draft"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The disk, the user's share of it, or the largest file that this process may write."""


def spool_folder(settings: Settings) -> Path:
    """The same at each start, so that a killed process's leftovers are found; one for each host."""
    _, port = host_and_port(settings.rollout.url)
    return temporary_folder(settings.run.name, str(port))


class Spool:
    """A private folder with one draft at a time, and the files that drafts became."""

    def __init__(self, settings: Settings) -> None:
        """Removes what a killed process left. The folder is made when something comes.

        Raises:
            SettingsError: Something that is not this user's is in its place.
        """
        self.folder = spool_folder(settings)
        if os.path.lexists(self.folder):
            _remove(private_folder(self.folder))

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

    def open_draft(self) -> int:
        """A descriptor for writing; replaces an earlier draft."""
        draft = private_folder(self.folder) / _DRAFT
        draft.unlink(missing_ok=True)
        return os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def drop_draft(self) -> None:
        """Forget what was written."""
        (self.folder / _DRAFT).unlink(missing_ok=True)

    def keep_draft(self, name: str) -> Path:
        """Give the draft its name. Those that have an earlier file of that name open keep it."""
        return (self.folder / _DRAFT).rename(self.folder / name)

    def new_folder(self, prefix: str) -> Path:
        """An empty folder, which the caller removes."""
        return Path(tempfile.mkdtemp(prefix=prefix, dir=private_folder(self.folder)))

    def remove(self) -> None:
        """Remove the folder. Safe to call twice."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise SettingsError(
            f"cannot remove {folder}, which an earlier process left: {error}"
        ) from error
