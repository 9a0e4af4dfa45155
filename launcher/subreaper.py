"""Runs one command and leaves nothing of it behind: `python subreaper.py GRACE_S COMMAND …`.

The launcher starts every part under a subreaper. A part has children of its own (the trainer's
ranks, vLLM's engine processes), often in sessions of their own, so killing a process group misses
some. A process that loses its parent becomes the subreaper's child (prctl), so nothing escapes. It
ends the whole tree when

- the command ends, however it ends (what the command left running would hold its GPU and port);
- it gets SIGTERM: the command gets SIGTERM and `GRACE_S` seconds; with SIGQUIT it gets no time;
- the launcher is gone, even by kill -9: then the pipe that is the subreaper's stdin closes.

Should the subreaper itself be killed, the command dies with it (PR_SET_PDEATHSIG), and the
launcher, a subreaper too, gets the rest. It exits as the command did; 128 + N for signal N. Linux
only, as vLLM is.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STRAGGLER_S = 3.0
"""What is left of a tree gets this long between SIGTERM and SIGKILL, after the command is gone:
Python's resource tracker, for one, then removes the shared memory of those who died."""


def become_subreaper() -> None:
    """From now on orphaned descendants become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """From now on this process is killed when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def command(grace_s: float, command: Sequence[str]) -> list[str]:
    """The command line that runs a command under a subreaper."""
    return [sys.executable, "-I", __file__, str(grace_s), *command]


def descendants(pid: int) -> list[int]:
    """All living processes under `pid`, whatever their session; zombies are not alive."""
    return list(filter(is_alive, children(pid, recursive=True)))


def children(pid: int, *, recursive: bool = False) -> list[int]:
    """Children of `pid`, zombies included; with theirs where it is recursive."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive)]
    return []


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_tree(pid: int) -> None:
    """Kill a process and all under it."""
    for member in (pid, *descendants(pid)):
        send(member, signal.SIGKILL)


class Subreaper:
    """One command, from its start until its whole tree is gone."""

    def __init__(self, command: list[str], grace_s: float) -> None:
        self._grace_s = grace_s
        self._stop_asked = False
        self._hurry = False
        self._wake_fd, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        # Handlers, not SIG_IGN: an ignored signal would stay ignored in the command.
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGQUIT, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGHUP, lambda *_: None)
        become_subreaper()
        self._command = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # one thread: safe here
        )

    def run(self) -> int:
        """Wait for one of the three ends, and bring it about. The exit status."""
        while not (self._ended() or self._stop_asked):
            readable, _, _ = select.select([0, self._wake_fd], [], [], 1.0)
            if self._wake_fd in readable:
                os.read(self._wake_fd, 512)
            if 0 in readable and not os.read(0, 512):
                break  # the launcher is gone
        if not self._ended():
            send(self._command.pid, signal.SIGTERM)
            self._wait(self._grace_s, self._ended)
            if not self._ended():
                send(self._command.pid, signal.SIGKILL)
        self._end_tree()
        code = self._command.returncode
        return 128 - code if code < 0 else code

    def _on_stop(self, number: int, _: object) -> None:
        self._stop_asked = True
        self._hurry = self._hurry or number == signal.SIGQUIT

    def _ended(self) -> bool:
        """Reap whatever has ended; whether the command has."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self._command.pid:
                self._command.returncode = os.waitstatus_to_exitcode(status)
        return self._command.returncode is not None

    def _end_tree(self) -> None:
        self._signal_tree(signal.SIGTERM)
        self._wait(_STRAGGLER_S, self._alone)
        while not self._alone():  # more than once: a fork in between, a process stuck in a driver
            self._signal_tree(signal.SIGKILL)
            time.sleep(0.05)

    def _signal_tree(self, number: int) -> None:
        for pid in descendants(os.getpid()):
            send(pid, number)

    def _alone(self) -> bool:
        return self._ended() and not descendants(os.getpid())

    def _wait(self, seconds: float, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not (until() or self._hurry) and time.monotonic() < deadline:
            time.sleep(0.05)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def main() -> None:
    """Entry point of the process."""
    try:
        subreaper = Subreaper(sys.argv[2:], float(sys.argv[1]))
    except OSError as error:
        sys.exit(f"cannot start {sys.argv[2]}: {error}")
    sys.exit(subreaper.run())


if __name__ == "__main__":
    main()
