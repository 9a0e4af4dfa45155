"""A disk of its own for each part, small, that can be full."""

import os
import shutil
import subprocess
from pathlib import Path

_SIZE_MIB = 384
_BALLAST = "ballast"


IN_NAMESPACE = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
"""Before the words of a command that is to mount disks, which go when it ends."""


def may_mount() -> bool:
    """Whether `IN_NAMESPACE` works here."""
    try:
        return not subprocess.run([*IN_NAMESPACE, "true"], capture_output=True).returncode
    except FileNotFoundError:
        return False


class Disk:
    """Memory as a disk at a folder, in the block; a mere folder where `is_own` is not set."""

    def __init__(self, folder: Path, *, is_own: bool) -> None:
        folder.mkdir()
        self.folder = folder
        self._is_own = is_own

    def __enter__(self) -> "Disk":
        if self._is_own:
            size = f"size={_SIZE_MIB}m,mode=0700"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", self.folder], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_own:
            subprocess.run(["umount", "--lazy", self.folder], check=True)

    def fill(self) -> None:
        """Leave no room."""
        assert self._is_own
        with (self.folder / _BALLAST).open("wb") as file:
            while free := shutil.disk_usage(self.folder).free:
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), free)
                    file.seek(0, os.SEEK_END)
                except OSError:  # somebody else took some of it
                    break

    def free(self) -> None:
        (self.folder / _BALLAST).unlink(missing_ok=True)
