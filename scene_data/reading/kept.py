"""What reading a whole dataset found, kept for the next time.

Example: which of 1,000,000 rows are usable takes minutes to find out, and 1 MB to keep.
"""

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.host.environment import environment_value

logger = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

_PACKAGES = ("scene_data", "scene_graph")
"""What is found depends on their code."""


def kept(state: str | None, what: str, find: Callable[[], Arrays]) -> Arrays:
    """What `find` gives, from a file where it was found before.

    The files are in `sgg-rl` of the folder of Hugging Face's caches (`HF_HOME`), and may be
    deleted. One that cannot be read or written costs the time to find it again.

    Args:
        state: What the data is known by, another one once it changes. None: nothing is kept.
        what: That is found in it, with all that it depends on.
        find: Reads the data. Its arrays are of numbers.
    """
    if state is None:
        return find()
    key = hashlib.sha256("\0".join((_code(), what, state)).encode()).hexdigest()
    file = kept_folder() / f"{key}.npz"
    try:
        with np.load(file) as found:
            return {name: found[name] for name in found.files}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read, and is made again: %s", file, error)
    arrays = find()
    try:
        _write(file, arrays)
    except OSError as error:
        logger.warning("what was found of a dataset is not kept in %s: %s", file.parent, error)
    return arrays


def kept_folder() -> Path:
    """Where it is kept; may be deleted."""
    user = Path(environment_value("HOME") or "/")
    caches = Path(environment_value("XDG_CACHE_HOME") or user / ".cache")
    return Path(environment_value("HF_HOME") or caches / "huggingface") / "sgg-rl"


@cache
def _code() -> str:
    """This release's: another may find something else."""
    digest, top = hashlib.sha256(), Path(__file__).parents[2]
    for package in _PACKAGES:
        for file in sorted((top / package).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _write(file: Path, arrays: Arrays) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".draft-{os.getpid()}")
    try:
        with draft.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]  # of a name it may think a flag
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
