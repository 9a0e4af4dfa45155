"""Imports without what nobody uses, and a process's end, both without the garbage collector.

What torch, transformers and vLLM make while they are imported stays to the end. The collector looks
through it again and again while it grows, and once more when all is over: a third of the CPU time
of a start and an end (docs/verified.md).
"""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_UNUSED = "sklearn"
"""transformers imports it wherever it is installed, and with it pandas and scipy's statistics, for
a kind of generation that no process of ours does: a tenth of a trainer's start (docs/verified.md).
"""


@contextmanager
def many_imports() -> Iterator[None]:
    """Collect no garbage meanwhile; what there is afterwards is never looked through again.

    For imports alone: garbage of anything else would stay for ever. A package that they would only
    look for counts as not installed.

    Example: `with many_imports(): import torch`
    """
    gc.disable()
    hides = _UNUSED not in sys.modules
    if hides:
        sys.modules[_UNUSED] = None  # type: ignore[assignment]  # Python's own word for absent
    try:
        yield
    finally:
        if hides:
            del sys.modules[_UNUSED]
        gc.freeze()
        gc.enable()


def end_at_once() -> None:
    """Let this process, and those that it forks, end without a last collection.

    The system takes their memory back as it is. Files that were left open in a circle of objects
    are not flushed then: close them.
    """
    atexit.register(gc.freeze)  # the first to be registered is the last to be called
    # vLLM's processes collect at their end what was frozen too. In one that was forked that copies
    # all that its parent had imported: two workers took so long that they were killed.
    gc.unfreeze = _stay_frozen


def _stay_frozen() -> None:
    pass
