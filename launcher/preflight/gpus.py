"""The GPUs that a process started here would see, without loading torch."""

import importlib.metadata
import subprocess
from dataclasses import dataclass

from services.errors import SettingsError
from services.settings import environment_value

_FIELDS = "index,uuid,name,memory.total,compute_cap"
_BFLOAT16 = 8.0
"""Compute capability from which on a GPU computes in bfloat16."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as `nvidia-smi` describes it."""

    index: int
    uuid: str
    name: str
    memory_gib: float
    capability: float

    @property
    def has_bfloat16(self) -> bool:
        """Whether it computes in bfloat16 by itself."""
        return self.capability >= _BFLOAT16


def has_cuda_build() -> bool:
    """Whether the installed torch is one for GPUs: then a run asks for them."""
    try:
        return not importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def gpus_are_wanted() -> bool:
    """Whether a start here is one on GPUs. `CUDA_VISIBLE_DEVICES=` (empty) says that none is."""
    return has_cuda_build() and environment_value("CUDA_VISIBLE_DEVICES") != ""


def visible_gpus() -> list[Gpu]:
    """Those of this machine that `CUDA_VISIBLE_DEVICES` leaves."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return chosen(parsed(done.stdout), environment_value("CUDA_VISIBLE_DEVICES"))


def parsed(text: str) -> list[Gpu]:
    """Of `nvidia-smi`'s lines of comma separated values."""
    rows = [[word.strip() for word in line.split(",")] for line in text.splitlines() if line]
    return [
        Gpu(int(index), uuid, name, float(mib) / 1024, float(capability))
        for index, uuid, name, mib, capability in rows
    ]


def chosen(gpus: list[Gpu], visible: str | None) -> list[Gpu]:
    """Those that a value of `CUDA_VISIBLE_DEVICES` names, in its order; CUDA stops at a wrong one.

    Args:
        gpus: Of the machine.
        visible: Indices or beginnings of UUIDs; None leaves all.
    """
    if visible is None:
        return gpus
    found = []
    for name in filter(None, visible.split(",")):
        word = name.strip()
        gpu = next((g for g in gpus if word == str(g.index) or _is_uuid(word, g)), None)
        if gpu is None:
            break
        found.append(gpu)
    return found


def check_gpus(num_needed: int, *, who: str) -> None:
    """Refuse a start that wants GPUs where there are too few.

    Args:
        num_needed: On this machine.
        who: Needs them, for the message.

    Raises:
        SettingsError: With what to do.
    """
    if not gpus_are_wanted():
        return
    num_here = len(visible_gpus())
    if num_here < num_needed:
        visible = environment_value("CUDA_VISIBLE_DEVICES")
        limit = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        gpus = "GPU" if num_needed == 1 else "GPUs"
        raise SettingsError(
            f"{who} needs {num_needed} {gpus}, and {num_here or 'none'} can be seen here{limit}: "
            "start it where `nvidia-smi` lists them (Slurm: --gpus-per-task), or install the CPU "
            "packages (EXTRA=cpu)"
        )


def _is_uuid(word: str, gpu: Gpu) -> bool:
    return word.startswith("GPU-") and gpu.uuid.startswith(word)
