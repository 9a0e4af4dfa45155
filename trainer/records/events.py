"""What happens around a run's steps, as lines of `events.jsonl`."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.errors import SupersededError
from services.run_folder.events import Event, EventKind
from trainer.records.step_lines import StepLines

logger = logging.getLogger(__name__)

_CHARACTERS = 500
"""A text is cut here."""


class EventLog:
    """Writes events of rank 0, from any thread. None waits or raises: training is worth more.

    Args:
        lines: `events.jsonl`; None where nothing is written.
        check: Raises `SupersededError` once a later trainer has started.
    """

    def __init__(self, lines: StepLines | None = None, check: Callable[[], None] = lambda: None):
        self._lines = lines
        self._check = check
        self._lock = threading.Lock()
        self.step: int | None = None
        """That is being done: what happens belongs to it. Before a resume has cut the file there is
        none, and nothing is written."""

    def note(self, kind: EventKind, text: str, step: int | None = None) -> None:
        """Add an event.

        Args:
            kind: What happened.
            text: The same in a sentence.
            step: That it belongs to, where this is another one than is being done.
        """
        if self._lines is None or self.step is None:
            return
        step = self.step if step is None else step
        event = Event(time=time.time(), step=step, kind=kind, text=text[:_CHARACTERS])
        try:
            with self._lock:
                self._check()
                self._lines.append(event)
        except SupersededError:
            pass  # the later trainer writes what happens
        except OSError as error:
            logger.warning("an event is not written to events.jsonl: %s", error)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """A block whose error is an event."""
        try:
            yield
        except Exception as error:
            self.note("failed", f"{type(error).__name__}: {error}")
            raise
