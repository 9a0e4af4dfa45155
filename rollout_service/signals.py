"""What a rollout server does when it is told to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_signals(first: Callable[[], object], again: Callable[[], object]) -> Iterator[None]:
    """Call `first` at the first SIGTERM or SIGINT and `again` at each later one.

    The handlers from before are called at the first one too, and only then: at a second
    SIGINT uvicorn would end without handing anything back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            again()
            return
        asked = True
        first()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in STOP_SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
