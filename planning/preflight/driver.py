"""What `nvidia-smi` says, and whether the driver is new enough for torch, without loading torch."""

import ctypes
import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

from services.errors import SettingsError

_OLDEST = {11: 450, 12: 525, 13: 580}
"""NVIDIA's driver that runs programs of a CUDA major version, at least
(https://docs.nvidia.com/deploy/cuda-compatibility)."""
_TRACES = tuple(map(Path, ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")))
"""Where there is a driver, one of them is there."""
_NO_DEVICES = 6
"""Exit status of an `nvidia-smi` that works and finds no GPU."""
_TIMEOUT_S = 60


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch is built for, such as `13.0`; None: for CPUs."""
    try:
        torch = importlib.metadata.distribution("torch")
        text = Path(str(torch.locate_file("torch/version.py"))).read_text()
    except (importlib.metadata.PackageNotFoundError, OSError):
        return None
    found = re.search(r"^cuda\b.*= *'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None


def nvidia_smi(*arguments: str) -> tuple[str, str]:
    """What it prints, and what is wrong: with it, with the driver, or with a GPU.

    Returns:
        Its standard output, and a sentence; each may be empty, both are where there is no driver.
    """
    if shutil.which("nvidia-smi") is None:
        trace = next((path for path in _TRACES if path.exists()), None)
        return "", "" if trace is None else (
            f"{trace} shows a driver, but no nvidia-smi is on PATH: install it, or in a container "
            "let NVIDIA_DRIVER_CAPABILITIES be compute,utility"
        )
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        return "", f"nvidia-smi does not work: {error}"
    if "not a valid field" in done.stdout + done.stderr:  # `compute_cap` came with driver 510
        return "", f"the driver is older than 510: {_remedy()}"
    if done.returncode in (0, _NO_DEVICES):
        return done.stdout, ""
    said = [line for line in (done.stderr + done.stdout).splitlines() if not line[:1].isdigit()]
    return done.stdout, f"nvidia-smi says: {' '.join(said) or f'status {done.returncode}'}"


def check_driver(version: str, *, who: str) -> None:
    """Refuse a driver that is too old for the installed torch: that would compute on the CPU.

    Args:
        version: The driver's version, such as `570.86.15`; anything else is let through.
        who: Needs it, for the message.

    Raises:
        SettingsError: With what to do.
    """
    number, cuda = re.match(r"\d+", version), torch_cuda()
    if number is None or cuda is None:
        return
    major = int(cuda.partition(".")[0])
    oldest = _OLDEST.get(major, 0)
    # NVIDIA's package cuda-compat puts a newer library over an old driver.
    if int(number[0]) < oldest and _library_cuda() < major:
        raise SettingsError(f"{who} needs a newer driver than {version}: {_remedy()}")


def _remedy() -> str:
    cuda = torch_cuda() or ""
    oldest = _OLDEST.get(int(cuda.partition(".")[0] or 0))
    return (
        f"torch is built for CUDA {cuda}, so upgrade to {oldest} or newer, or on data-centre GPUs "
        f"put NVIDIA's cuda-compat-{cuda.replace('.', '-')} on LD_LIBRARY_PATH, or install the CPU "
        "packages (EXTRA=cpu)"
    )


def _library_cuda() -> int:
    """CUDA's major version of the driver's library; 0 where it is not there."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))  # needs no device, and initialises nothing
    return version.value // 1000
