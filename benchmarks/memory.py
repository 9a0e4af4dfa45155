"""Peak memory of a part of a process."""

from pathlib import Path

import torch


class PeakMemory:
    """How far memory rises over what is held when this is made.

    On the CPU the kernel's high-water mark of the resident size, which it forgets on request; on
    CUDA the allocator's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        self._before = self._peak()

    def mib(self) -> float:
        """The rise so far, in MiB."""
        return (self._peak() - self._before) / 2**20

    def total_mib(self) -> float:
        """The peak itself, in MiB."""
        return self._peak() / 2**20

    def _peak(self) -> float:
        """Bytes."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return float(torch.cuda.max_memory_allocated(self._device))
        status = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in status if line.startswith("VmHWM:"))
        return float(line.split()[1]) * 1024
