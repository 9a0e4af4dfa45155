"""Consoles that outlive a closed terminal."""

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Self, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType  # noqa: TID251
from rich.live import Live
from rich.segment import Segment

from services.printable import printable

Say = Callable[[str], None]


class _Outlived:
    """A stream whose reader may go away: a closed terminal, the end of a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:  # what is kept for it must go somewhere, or Python's end is an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class SafeConsole(Console):
    """rich's console, whose text may come from anywhere: only rich itself steers the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """See `Console.render`."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


class LiveView:
    """What is shown again and again: in its place on a terminal, else line by line."""

    def __init__(self, console: SafeConsole) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        if self._live:
            self._live.stop()

    def update(self) -> None:
        """Show the present state; to be called several times a second."""
        raise NotImplementedError


def open_console() -> SafeConsole:
    """Standard output."""
    return SafeConsole(file=cast(TextIO, _Outlived(sys.stdout)))


def say_on(console: SafeConsole) -> Say:
    """Prints lines for people as they are."""
    return partial(console.print, soft_wrap=True, highlight=False, markup=False)
