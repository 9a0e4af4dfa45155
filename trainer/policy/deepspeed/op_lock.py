"""Where DeepSpeed's compiled ops lie, and the lock under which one process at a time builds them.

torch guards a build with a file that a killed process leaves behind, on which every later one would
wait for ever. The kernel gives back the lock here whoever dies; who has it knows that such a file
is nobody's.
"""

import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from services.errors import SettingsError
from services.host.environment import environment_value, own_programs_on_path, set_environment

logger = logging.getLogger(__name__)

_VARIABLE = "TORCH_EXTENSIONS_DIR"
"""torch's name of the folder that ops are built in."""


def environment_folder() -> Path:
    """The folder inside this Python environment: two of one user do not build over one another."""
    return Path(sys.prefix, "torch_extensions")


def built_op(op: str) -> Path | None:
    """An op's library in a folder that cannot be written: torch would fail to load it from there.

    Args:
        op: DeepSpeed's name of it.
    """
    root = Path(environment_value(_VARIABLE) or environment_folder())
    library = root / op / f"{op}.so"
    return library if library.is_file() and not _is_writable(library.parent) else None


@contextmanager
def sole_loader(op: str) -> Iterator[None]:
    """Hold an op's lock, and have torch build it in the folder that this process is to use.

    That is `TORCH_EXTENSIONS_DIR`, where the user has set it; else the environment's own; where
    that cannot be written, torch's default, in the user's cache.

    Args:
        op: DeepSpeed's name of it, and of its folder.

    Raises:
        SettingsError: No such folder can be written.
    """
    own_programs_on_path()  # torch asks for ninja, also to load what is built
    root = _root(op)
    with (root / f"{op}.lock").open("w") as file:
        with suppress(OSError):  # of a file system that has no locks
            _lock(file, op)
        for left in root.glob(f"**/{op}/lock"):
            left.unlink(missing_ok=True)
        yield


def _lock(file: IO[str], op: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("waiting for another process that builds or loads DeepSpeed's %s", op)
        fcntl.flock(file, fcntl.LOCK_EX)


def _root(op: str) -> Path:
    named = environment_value(_VARIABLE)
    own = Path(named) if named else environment_folder()
    if _make(own):
        set_environment(_VARIABLE, str(own))
        return own
    if named:
        raise SettingsError(
            f"{_VARIABLE} = '{named}' cannot be written, and DeepSpeed's {op} is to be built there:"
            " name a folder that can be written"
        )
    from torch.utils.cpp_extension import get_default_build_root  # this file is light without

    default = Path(get_default_build_root())
    if _make(default):
        return default  # without the variable: torch has a folder for each Python below it
    raise SettingsError(
        f"DeepSpeed's {op} cannot be built: neither {own} nor {default} can be written; make one of"
        f" them writable, or name another folder in {_VARIABLE}"
    )


def _make(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return _is_writable(folder)


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
