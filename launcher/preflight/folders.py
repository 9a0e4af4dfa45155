"""Whether a run's folder can be written, lies where others see it, and has room."""

import shutil
import tempfile
from pathlib import Path

from launcher.preflight.finding import Finding, look
from services.errors import SettingsError
from services.settings import Settings
from trainer.sizing.estimate import num_trainable
from trainer.sizing.shapes import ModelShape

_GIB = 2**30
_SHARED = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "fuse.beegfs", "wekafs"}
"""Kinds of file systems that several hosts see."""
_OPTIMIZER_BYTES = 12
"""Of a parameter: float32 weights and Adam's two moments."""


def check_run_folder(folder: Path, *, named_by: str = "run.root") -> None:
    """Refuse a folder that cannot be made or written; nothing is left there.

    Args:
        folder: That a start writes to.
        named_by: The setting or option that leads to it.

    Raises:
        SettingsError: With what to do.
    """
    there = _nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"0")
    except OSError as error:
        raise SettingsError(
            f"the folder {folder} cannot be written ({there}: {error.strerror}): set {named_by} to "
            "a folder of yours, or make this one writable"
        ) from error


def folder_findings(settings: Settings, shape: ModelShape | None, *, hosts: int) -> list[Finding]:
    """Of a run's folder and of `/dev/shm`.

    Args:
        settings: Of the run.
        shape: Of its model; None where nothing is known of it.
        hosts: That the run's parts are on, this one counted.
    """
    found = look("runs folder", lambda: _writable(settings.run.folder))
    if found.state != "ok":
        return [found]
    room = [] if shape is None else _room(settings, shape)
    return [found, _file_system(settings.run.folder, hosts), *room]


def file_system(folder: Path) -> str:
    """Its kind, such as `ext4` or `lustre`."""
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, at, name, *_ = line.split(" ")
        mount = Path(at.replace("\\040", " "))
        if folder.resolve().is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, name
    return kind


def _nearest(folder: Path) -> Path:
    """The folder itself, or what is there of the way to it."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _writable(folder: Path) -> str:
    check_run_folder(folder)
    return str(folder)


def _file_system(folder: Path, hosts: int) -> Finding:
    kind = file_system(folder)
    if hosts == 1 or kind in _SHARED:
        return Finding("file system", "ok", f"{folder} is on {kind}")
    return Finding(
        "file system",
        "warning",
        f"{folder} is on {kind}, and the run's parts are on {hosts} hosts: set run.root to a "
        "folder that all of them see, or make sure that this one is",
    )


def _room(settings: Settings, shape: ModelShape) -> list[Finding]:
    width = 2 if settings.model.dtype == "bfloat16" else 4
    version = shape.num_parameters * width
    state = version + num_trainable(settings, shape) * _OPTIMIZER_BYTES
    found = [
        _free(
            "room for checkpoints",
            settings.run.folder,
            state * (settings.trainer.keep_checkpoints + 1),
            "set run.root to a larger file system, or trainer.keep_checkpoints lower",
        )
    ]
    if settings.weights.transport == "shm":
        remedy = "make it larger (docker: shm_size), or set weights.transport = 'disk'"
        found.append(_free("room for weights", Path("/dev/shm"), 2 * version, remedy))
    return found


def _free(name: str, folder: Path, needed: float, remedy: str) -> Finding:
    free = shutil.disk_usage(_nearest(folder)).free
    sizes = f"{needed / _GIB:.1f} GiB wanted, {free / _GIB:.1f} GiB free in {folder}"
    if free < needed:
        return Finding(name, "missing", f"{sizes}: {remedy}")
    return Finding(name, "ok", sizes)
