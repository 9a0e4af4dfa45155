"""What long work shows of itself: a run's steps, a count, or the stage that it is in."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launcher.views.terminal import SafeConsole, open_console

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from services.settings import Settings

_TICK_S = 0.5


@contextmanager
def counted(what: str) -> Iterator[Callable[[], object]]:
    """Count on a terminal while the block runs; elsewhere stay silent."""
    from rich.progress import TextColumn

    with _progress(TextColumn(f"{{task.completed:,.0f}} {what}")) as progress:
        task = progress.add_task(what, total=None)
        yield lambda: progress.advance(task)


@contextmanager
def staged() -> Iterator[Callable[[str], object]]:
    """Name the present part of the work on a terminal while the block runs; else stay silent."""
    from rich.progress import SpinnerColumn, TextColumn

    with _progress(SpinnerColumn(), TextColumn("{task.description}", markup=False)) as progress:
        task = progress.add_task("", total=None)
        yield lambda name: progress.update(task, description=name)


def _progress(*columns: "ProgressColumn") -> "Progress":
    from rich.progress import Progress, TimeElapsedColumn

    console = SafeConsole(stderr=True)  # standard output is for the result
    return Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def shown(settings: "Settings") -> Iterator[None]:
    """Follow the run's rows while the block runs, and to its last line."""
    from launcher.views.run_table import RunTable, term_weights

    over = threading.Event()
    weights = term_weights(settings)
    with RunTable(settings.run.files, None, dict, open_console(), weights) as table:

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
