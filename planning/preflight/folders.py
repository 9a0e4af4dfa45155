"""Whether a run's folder can be written, and what it lies on, without loading torch."""

import os
import tempfile
from pathlib import Path

from planning.preflight.bare import nearest
from services.errors import SettingsError


def check_run_folder(folder: Path, *, named_by: str = "run.root") -> None:
    """Refuse a folder that cannot be made or written; nothing is left there.

    Args:
        folder: That a start writes to.
        named_by: The setting or option that leads to it.

    Raises:
        SettingsError: With what to do.
    """
    there = nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"0")
    except OSError as error:
        raise SettingsError(
            f"the folder {folder} cannot be written ({there}: {error.strerror}): set {named_by} to "
            "a folder of yours, or make this one writable"
        ) from error


def is_read_only(folder: Path) -> bool:
    """Whether it is mounted for reading alone, which somebody meant."""
    return bool(os.statvfs(nearest(folder)).f_flag & os.ST_RDONLY)


def file_system(folder: Path) -> str:
    """Its kind, such as `ext4` or `lustre`."""
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, at, name, *_ = line.split(" ")
        mount = Path(at.replace("\\040", " "))
        if folder.resolve().is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, name
    return kind
