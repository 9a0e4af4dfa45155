"""A run's plots and report, drawn by a process of their own beside the run."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from services.host.environment import part_environment
from services.run_folder import RunFolder

logger = logging.getLogger(__name__)

_LONGEST_S = 300.0
"""The last drawing is given up then: what a run holds costs."""
_LONGEST_BESIDE_S = 1800.0
"""One beside training: it gets what training leaves."""
_NICE = 19


class ResultsProcess:
    """Draws `plots/*.png` and `report.html` again whenever `begin` is called, one at a time.

    The process has no GPU and one thread, and yields its core to whatever trains. What it says goes
    to `logs/report.log`; that it failed is said in this process's log, once.
    """

    def __init__(self, folder: RunFolder) -> None:
        """Starts nothing.

        Args:
            folder: With `config.toml`.
        """
        self._folder = folder
        self._log = folder.logs / "report.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._said = False

    def begin(self) -> None:
        """Draw in the background; where the last drawing still goes on, the next one is enough."""
        if self._is_over(_LONGEST_BESIDE_S):
            self._start()
            with suppress(OSError):  # it has ended already
                if self._process is not None:
                    os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICE)

    def finish(self) -> list[Path]:
        """Draw for the last time, wait for that, and say what was written."""
        self.close()
        self._start()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_LONGEST_S)
        self._is_over(0.0)
        return list(written_results(self._folder))

    def close(self) -> None:
        """Give up what is drawn, and leave no draft of it."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            for folder in (self._folder.path, self._folder.plots):
                for draft in folder.glob(f"*.{self._process.pid}.draft"):
                    draft.unlink(missing_ok=True)
        self._process = None

    def _start(self) -> None:
        command = [sys.executable, "-m", "evaluation.of_a_run.report", str(self._folder.path)]
        self._began = time.monotonic()
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=part_environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1"),
                    process_group=0,  # Ctrl-C is the run's
                )
        except OSError as error:
            self._say(str(error))

    def _is_over(self, limit_s: float) -> bool:
        """Whether nothing is drawn now; one that takes longer than `limit_s` is ended."""
        process = self._process
        if process is not None and process.poll() is None:
            if time.monotonic() - self._began < limit_s:
                return False
            self.close()
            self._say(f"it took over {time.monotonic() - self._began:.0f} s")
        elif process is not None:
            self._process = None
            if process.returncode:
                self._say(f"{_last_words(self._log)} (all of it: {self._log})")
        return True

    def _say(self, why: str) -> None:
        if not self._said:
            logger.warning("no report: %s", why)
        self._said = True


def written_results(folder: RunFolder) -> Iterator[Path]:
    """The plots and the report of a run, as far as they are there."""
    yield from sorted(folder.plots.glob("*.png"))
    if folder.report.is_file():
        yield folder.report


def _last_words(log: Path) -> str:
    """The message of an error of ours, else the last line."""
    try:
        text = log.read_text(errors="replace").strip()
    except OSError as error:
        return str(error)
    _, ours, message = text.rpartition("sgg-rl: ")
    return message if ours else text.rpartition("\n")[2]
