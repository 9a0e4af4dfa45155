"""The GPUs that a process started here would see, without loading torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from planning.preflight.driver import check_driver, nvidia_smi, torch_cuda
from services.errors import SettingsError
from services.host.environment import environment_value

_FIELDS = ("index", "uuid", "name", "memory.total", "compute_cap", "driver_version")
_BFLOAT16 = 8.0
"""Compute capability from which on a GPU computes in bfloat16."""
_MEMINFO = Path("/proc/meminfo")
"""Its first line is `MemTotal:  125513012 kB`."""
_SHARED = ("[N/A]", "[Not Supported]")
"""What `nvidia-smi` tells of the memory of a GPU that has none of its own."""
_MIG = re.compile(r"^\s+MIG (?P<profile>\S*?(?P<gib>\d+)gb\S*) .*\(UUID: (?P<uuid>MIG-[^)]+)\)")
"""A line of `nvidia-smi -L`: `  MIG 1g.10gb     Device  0: (UUID: MIG-2c1f…)`."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as `nvidia-smi` describes it, or a part of one that MIG has cut off."""

    index: int
    uuid: str
    name: str
    memory_gib: float
    """0 where it is not told."""
    capability: float | None
    """None where it is not told."""
    driver: str
    """Its version, such as `580.95.05`."""
    shares_memory: bool = False
    """The system's memory is the GPU's as well (GB10): `memory_gib` is of both."""

    def __str__(self) -> str:
        if not self.memory_gib:
            return f"{self.name}, memory unknown"
        whose = " of memory, the system's own" if self.shares_memory else ""
        return f"{self.name}, {self.memory_gib:.0f} GiB{whose}"

    @property
    def has_bfloat16(self) -> bool:
        """Whether it computes in bfloat16 by itself; taken for granted where nothing is told."""
        return self.capability is None or self.capability >= _BFLOAT16


def has_cuda_build() -> bool:
    """Whether the installed torch is one for GPUs: then a run asks for them."""
    return torch_cuda() is not None


def gpus_are_wanted() -> bool:
    """Whether a start here is one on GPUs. `CUDA_VISIBLE_DEVICES=` (empty) says that none is."""
    return has_cuda_build() and environment_value("CUDA_VISIBLE_DEVICES") != ""


def visible_gpus() -> list[Gpu]:
    """Those of this machine that `CUDA_VISIBLE_DEVICES` leaves."""
    return look_for_gpus()[0]


def look_for_gpus() -> tuple[list[Gpu], str]:
    """As `visible_gpus`, and what is wrong with driver or GPUs; empty where nothing is."""
    visible = environment_value("CUDA_VISIBLE_DEVICES")
    text, problem = nvidia_smi(f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")
    gpus = parsed(text)
    if "MIG-" in (visible or ""):
        gpus += mig_parts(nvidia_smi("-L")[0], gpus)
    return chosen(gpus, visible), problem


def parsed(text: str) -> list[Gpu]:
    """Read `nvidia-smi`'s lines of comma separated values; its messages among them are left out."""
    rows = [[word.strip() for word in line.split(",")] for line in text.splitlines()]
    return [_gpu(*row) for row in rows if row[0].isdecimal() and len(row) == len(_FIELDS)]


def mig_parts(text: str, gpus: list[Gpu]) -> list[Gpu]:
    """Read the lines of `nvidia-smi -L`, where each GPU is followed by its parts.

    Args:
        text: What it says of all GPUs.
        gpus: The machine's GPUs.
    """
    parts, whole = [], None
    for line in text.splitlines():
        if found := re.match(r"GPU (\d+): ", line):
            whole = next((gpu for gpu in gpus if gpu.index == int(found[1])), None)
        elif whole is not None and (found := _MIG.match(line)):
            name, size = f"{whole.name} MIG {found['profile']}", float(found["gib"])
            parts.append(
                Gpu(whole.index, found["uuid"], name, size, whole.capability, whole.driver)
            )
    return parts


def chosen(gpus: list[Gpu], visible: str | None) -> list[Gpu]:
    """Those that a value of `CUDA_VISIBLE_DEVICES` names, in its order; CUDA stops at a wrong one.

    Args:
        gpus: The machine's GPUs.
        visible: Indices or beginnings of UUIDs; None leaves all. Of parts of GPUs a process sees
            one, whatever is named.
    """
    if visible is None:
        return gpus
    found: list[Gpu] = []
    for name in filter(None, visible.split(",")):
        word = name.strip()
        gpu = next((g for g in gpus if _is_called(word, g)), None)
        if gpu is None:
            break
        found.append(gpu)
        if _is_part(gpu):
            break
    return found


def check_gpus(num_needed: int, *, who: str) -> None:
    """Refuse a start that wants GPUs where there are too few, or the driver is too old.

    Args:
        num_needed: On this machine.
        who: Needs them, for the message.

    Raises:
        SettingsError: With what to do.
    """
    if not gpus_are_wanted():
        return
    gpus, problem = look_for_gpus()
    if gpus:
        check_driver(gpus[0].driver, who=who)
    if len(gpus) < num_needed:
        wanted = "GPU" if num_needed == 1 else "GPUs"
        remedy = problem or (
            "start it where `nvidia-smi` lists them (Slurm: --gpus-per-task), or install the CPU "
            "packages (EXTRA=cpu)"
        )
        raise SettingsError(
            f"{who} needs {num_needed} {wanted}, and {len(gpus) or 'none'} can be seen "
            f"{seen_where()}: {remedy}"
        )


def seen_where() -> str:
    """Example: `"here (CUDA_VISIBLE_DEVICES=0,1)"`."""
    visible = environment_value("CUDA_VISIBLE_DEVICES")
    return "here" if visible is None else f"here (CUDA_VISIBLE_DEVICES={visible})"


def _gpu(index: str, uuid: str, name: str, memory: str, capability: str, driver: str) -> Gpu:
    shared = memory in _SHARED
    mib = _system_mib() if shared else _number(memory) or 0.0
    return Gpu(
        int(index), uuid, name, mib / 1024, _number(capability), driver, shares_memory=shared
    )


def _number(word: str) -> float | None:
    """None for `[N/A]`, `[Insufficient Permissions]`, `[Unknown Error]`, `ERR!`."""
    try:
        return float(word)
    except ValueError:
        return None


def _system_mib() -> float:
    return int(_MEMINFO.read_text().split()[1]) / 1024


def _is_called(word: str, gpu: Gpu) -> bool:
    if word.startswith(("GPU-", "MIG-")):
        return gpu.uuid.startswith(word)
    return word == str(gpu.index) and not _is_part(gpu)


def _is_part(gpu: Gpu) -> bool:
    return gpu.uuid.startswith("MIG-")
