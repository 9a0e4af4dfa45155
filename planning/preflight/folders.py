"""Whether a run's folder can be written, and what it lies on, without loading torch."""

import os
import tempfile
from pathlib import Path

import psutil

from planning.preflight.bare import nearest
from services.errors import SettingsError
from services.run_folder import RunFolder


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


def check_no_checkpoints(files: RunFolder) -> None:
    """Refuse to begin where a run of this name has checkpoints: they would be overwritten.

    Raises:
        SettingsError: With what to do.
    """
    if any(files.checkpoints.glob("*-[0-9]*")):  # GRPO's step-…, SFT's checkpoint-…
        raise SettingsError(
            f"{files.checkpoints} has checkpoints of a run of this name: add --resume to go on "
            "from the last one, give this run another run.name, or move the folder away"
        )


def is_read_only(folder: Path) -> bool:
    """Whether it is mounted for reading alone, which somebody meant."""
    return bool(os.statvfs(nearest(folder)).f_flag & os.ST_RDONLY)


def file_system(folder: Path) -> str:
    """Its kind, such as `ext4` or `lustre`."""
    path = folder.resolve()
    over = [p for p in psutil.disk_partitions(all=True) if path.is_relative_to(p.mountpoint)]
    nearest_mount = max(reversed(over), key=lambda p: len(Path(p.mountpoint).parts))
    return str(nearest_mount.fstype)
