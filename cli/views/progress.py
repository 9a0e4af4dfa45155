"""What `sgg-rl train` shows of itself: a live table on a terminal, else one line a step."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.views.run_table import RunTable
from launcher.views.terminal import open_console
from services.settings import Settings

_TICK_S = 0.5


@contextmanager
def shown(settings: Settings) -> Iterator[None]:
    """Follow the run's rows while the block runs, and to its last line."""
    over = threading.Event()
    with RunTable(settings.run.files, None, dict, open_console()) as table:

        def follow() -> None:
            while not over.wait(_TICK_S):
                table.update()

        thread = threading.Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
