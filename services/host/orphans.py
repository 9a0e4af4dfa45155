"""A process that multiprocessing started ends with its parent, even where that was killed."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """From now on this process ends when its parent has; one that a person started lives on.

    A killed parent tells nobody: its child would go on, and hold its GPU.
    """
    if multiprocessing.parent_process() is not None:
        threading.Thread(target=_follow_parent, name="parent", daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
