"""A part of a run: a process that comes back."""

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from services.host.environment import child_environment
from tests.processes import OF_A_RANK

_PAUSE_S = 0.2
"""Before a part that has ended is started again."""
_FINAL = (0, 75)
"""Exit codes of a trainer that is done, or was told to stop."""


class Part:
    """One process in a session of its own. It comes back until `close`."""

    def __init__(self, name: str, command: list[str], log: Path, root: Path, **more: str) -> None:
        """Starts it.

        Args:
            name: `trainer` may end well; the others may not.
            command: Its words.
            log: Where it writes.
            root: Its folder and where its code lies.
            more: More of its environment.
        """
        self.name = name
        self.pids: list[int] = []
        """Those of all its starts."""
        self.ended: list[int] = []
        """Exit codes of those that were not killed."""
        self._command = command
        self._log = log
        self._root = root
        self._more = more
        self._closed = threading.Event()
        self._may_run = threading.Event()
        self._may_run.set()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @property
    def num_starts(self) -> int:
        return len(self.pids)

    @property
    def is_done(self) -> bool:
        """Whether it ended and stays so."""
        return not self._thread.is_alive()

    def signal(self, number: int) -> None:
        """To the part and all that it has started."""
        process = self._process
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def hold(self) -> None:
        """Kill it. It comes back after `release`."""
        self._may_run.clear()
        self.signal(signal.SIGKILL)

    def release(self) -> None:
        self._may_run.set()

    def terminate(self) -> None:
        """As a supervisor does: to the part alone, which does not come back."""
        self._closed.set()
        if self._process is not None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def close(self) -> None:
        self._closed.set()
        self.release()
        for number in (signal.SIGCONT, signal.SIGKILL):
            self.signal(number)
        self._thread.join(10)

    def _keep(self) -> None:
        while not self._closed.is_set():
            with self._log.open("a") as out:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=self._root,
                    stdout=out,
                    stderr=out,
                    env=self._environment(),
                    start_new_session=True,
                )
            self.pids.append(self._process.pid)
            code = self._process.wait()
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # what the dead one left behind
            if self.name == "trainer" and code in _FINAL:
                return
            if code != -signal.SIGKILL:
                self.ended.append(code)
            time.sleep(_PAUSE_S)
            self._may_run.wait()

    def _environment(self) -> dict[str, str]:
        found = child_environment(OMP_NUM_THREADS="1", PYTHONPATH=str(self._root), **self._more)
        return {name: value for name, value in found.items() if name not in OF_A_RANK}
