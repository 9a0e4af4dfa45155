"""The peak memory of each process below this one, while it lives."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

from planning.preflight.driver import nvidia_smi
from planning.preflight.gpus import gpus_are_wanted
from services.host.gpu import GIB

_NAMES = {
    ("train",): "trainer",
    ("sft",): "sft",
    ("serve", "rollout"): "rollout server",
    ("serve", "reward"): "reward",
    ("serve", "monitor"): "monitor",
    ("infer",): "infer",
    ("evaluate",): "evaluate",
}
"""Processes by the words after `cli.main`."""
_MODULE = ["-m", "cli.main"]


class PeakMemory:
    """Peaks of processes by name, in GiB; call `look` several times a second.

    Of the host it is the kernel's own high-water mark of resident memory (VmHWM), so nothing is
    missed but what a process takes in its last moments. Of a GPU it is what `nvidia-smi` says.
    """

    def __init__(self) -> None:
        self.host: dict[str, float] = {}
        """The largest process of each name. `rollout engine` is vLLM's own process."""
        self.gpu: dict[str, float] = {}
        """The same of its GPU's memory; empty on a CPU."""
        self._has_gpu = gpus_are_wanted()

    def look(self) -> None:
        """Read all processes once."""
        names = self._names()
        for pid, name in names.items():
            with suppress(OSError, StopIteration):  # gone by now
                _raise_to(self.host, name, _resident_peak(pid))
        for pid, gib in _of_gpus().items() if self._has_gpu else ():
            if pid in names:
                _raise_to(self.gpu, names[pid], gib)

    def _names(self) -> dict[int, str]:
        """What each process is; those that a server starts are its engine's."""
        found: dict[int, str] = {}
        for process in psutil.Process().children(recursive=True):  # parents first
            with suppress(psutil.Error):
                name = process_name(process.cmdline())
                if name is None and found.get(process.ppid(), "").startswith("rollout"):
                    name = "rollout engine"
                if name is not None:
                    found[process.pid] = name
        return found


def process_name(words: list[str]) -> str | None:
    """The name of a process of this project by its command line; None for another."""
    if words[1:3] != _MODULE:
        return None
    return next((name for key, name in _NAMES.items() if words[3 : 3 + len(key)] == [*key]), None)


def trainer_pids() -> list[int]:
    """The trainer's processes below this one, the first started first."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with suppress(psutil.Error):
            if process_name(process.cmdline()) == "trainer":
                found.append(process.pid)
    return found


def _resident_peak(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / GIB


def _of_gpus() -> dict[int, float]:
    text, _ = nvidia_smi("--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    rows = (line.split(",") for line in text.splitlines())
    return {
        int(row[0]): float(row[1]) / 1024
        for row in rows
        if len(row) == 2 and row[0].strip().isdecimal() and row[1].strip().isdecimal()
    }


def _raise_to(peaks: dict[str, float], name: str, value: float) -> None:
    peaks[name] = max(value, peaks.get(name, 0.0))
