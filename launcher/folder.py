"""The run's folder: one run at a time, and nothing of an earlier run is overwritten."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.subreaper import is_alive
from services.errors import ConflictError, NotFoundError
from services.run_folder import RunFolder
from services.waiting import WaitNotice

_SETTLE_S = 60.0
"""How long the parts of a killed launcher may take to end."""
_DYING_S = 1.0
"""How long a launcher that was just killed may still look alive."""


def prepare_folder(folder: RunFolder, *, resume: bool) -> Path | None:
    """Make a run's folder, or take up the one that is there.

    Returns:
        Where an earlier run was moved to, if there was one.

    Raises:
        NotFoundError: There is nothing to resume.
    """
    if resume:
        if not folder.config.exists():
            raise NotFoundError(f"no run to resume in {folder.path}: start it without --resume")
        return None
    moved = None
    if folder.path.exists() and any(folder.path.iterdir()):
        moved = _move_away(folder.path)
    folder.path.mkdir(parents=True, exist_ok=True)
    return moved


def _move_away(path: Path) -> Path:
    number = 1
    while (target := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return path.rename(target)


@contextmanager
def run_lock(folder: Path) -> Iterator[int]:
    """Hold the run's name on this host; the lock's file descriptor.

    The lock lies beside the folder, which may be moved. Each process that inherits the descriptor
    holds it, so it is free only when the last part of a killed launcher is gone too.

    Raises:
        ConflictError: A run of this name is going on.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f".{folder.name}.lock")
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, file, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, file: Path, folder: Path) -> None:
    started, notice = time.monotonic(), WaitNotice(_SETTLE_S)
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = file.read_text()
            patience_s = _DYING_S if owner and is_alive(int(owner)) else _SETTLE_S
            if time.monotonic() - started > patience_s:
                raise ConflictError(
                    f"a run named {folder.name} is going on in {folder} (process {owner or '?'}): "
                    "stop it, or give this one another run.name"
                ) from None
        waited_s = time.monotonic() - started
        notice.waited(waited_s, f"the parts of an earlier run named {folder.name} are ending")
        time.sleep(0.2)  # its launcher is gone; its parts are about to be
