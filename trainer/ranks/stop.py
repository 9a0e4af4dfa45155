"""SIGTERM and SIGUSR1 ask a trainer to end, with its work kept.

| when it comes                    | what it does                                                  |
|----------------------------------|---------------------------------------------------------------|
| while steps are done (`noted`)   | `asked` says so: rank 0 ends the run with a checkpoint        |
| before the first or after the    | the process ends at once: what was done is in a checkpoint    |
| last step                        | already, or there is nothing yet                              |
| once more, over 2 s later        | the process ends at once                                      |

Both of the first two end with exit code 75. Once its work is in a checkpoint (`all_kept`) a process
that was asked to stop waits for nobody any more: not for Redis, a server, a tracker or a rank.
Signals are read in a thread: the main thread may be inside a collective, where Python's own
handlers do not run.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from services.host.environment import start_command

EXIT_STOPPED = os.EX_TEMPFAIL
"""75, "try again later": go on with `--resume`."""
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGUSR1})
END_S = 6.0
"""What a process gets to end in good order once its work is in a checkpoint."""
_END = b"\0"
"""Ends the listener; no signal has this number."""
_GO_ON = f"go on with `{start_command('--resume')}`"
_STOPPED = f"stopped with a checkpoint: {_GO_ON}"
_SAME_S = 2.0
"""One request may come as several signals: from a process group, and from a parent that passes it
on."""


class StopAskedError(Exception):
    """The run is to stop, on every rank at the same place."""


class StopRequest:
    """Whether this process was asked to stop. One that `stop_request` did not make never is.

    Args:
        owns_process: Whether nothing but the run is in this process, so that it may be ended.
    """

    def __init__(self, *, owns_process: bool = False) -> None:
        self._owns_process = owns_process
        self._asked_at: float | None = None
        self._noting = False
        self._kept = False

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked_at is not None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """In this block a signal is only noted; the block must look at `asked`."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def all_kept(self, *, is_done: bool) -> None:
        """All that was done is in a checkpoint.

        Where the run is to stop, a process of its own ends in `END_S`, whatever it is in by then.

        Args:
            is_done: Whether its last step is done. If not, this rank or another one was asked.
        """
        if not self._owns_process or (is_done and not self.asked):
            return
        self._kept = True
        timer = threading.Timer(END_S, _end, (EXIT_STOPPED, _STOPPED))
        timer.daemon = True
        timer.start()

    def hear(self, number: int) -> None:
        """A signal came."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            if not self._noting:
                _end(EXIT_STOPPED, f"stopped between steps: {_GO_ON}")
        elif self._kept:
            _end(EXIT_STOPPED, _STOPPED)
        elif time.monotonic() - self._asked_at > _SAME_S:
            _end(128 + number, "stopped for the second time: what is not in a checkpoint is lost")


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Listen for the signals while the block runs; in the main thread only."""
    request = StopRequest(owns_process=True)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    listener = threading.Thread(
        target=_listen, args=(read_end, request), name="stop-signals", daemon=True
    )
    listener.start()
    listening = True
    os.register_at_fork(after_in_child=lambda: _forget() if listening else None)
    try:
        yield request
    finally:
        listening = False
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(write_end, _END)
        listener.join()
        os.close(read_end)
        os.close(write_end)


def _listen(read_end: int, request: StopRequest) -> None:
    while (number := os.read(read_end, 1)) != _END:
        if number[0] in STOP_SIGNALS:
            request.hear(number[0])


def _forget() -> None:
    """A forked child's signals are its own: they must not reach the parent's pipe."""
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _end(code: int, why: str) -> None:
    sys.stderr.write(f"sgg-rl: {why}\n")
    sys.stderr.flush()
    os._exit(code)
