"""DeepSpeed's compiled op of this user, loaded by one process at a time.

torch guards it with a file that a killed process leaves behind, on which every later one would wait
for ever. The kernel gives back the lock here whoever dies; who has it knows that such a file is
nobody's.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

from services.settings import environment_value


@contextmanager
def sole_loader(op: str) -> Iterator[None]:
    """Hold the lock; first remove torch's own where a killed process left it.

    Without effect where the folder cannot be written or locked: nothing is compiled there.

    Args:
        op: Name of its folder under torch's.
    """
    root = Path(environment_value("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / f"{op}.lock").open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        yield
        return
    with file:
        for left in root.glob(f"**/{op}/lock"):
            left.unlink(missing_ok=True)
        yield
