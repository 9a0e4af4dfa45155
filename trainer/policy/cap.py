"""A rank's part of a GPU that a rollout server is on too."""

import torch

from services.host.environment import environment_value
from services.host.gpu import CONTEXT_GIB, GIB
from services.settings import Settings


def cap_memory(settings: Settings) -> None:
    """Keep this rank's tensors out of the server's share, where the settings put both on one GPU.

    What is over the cap ends as `torch.OutOfMemoryError`, in this process and not in the server
    that needs its share when it starts again.
    """
    if not settings.shares_gpus or not torch.cuda.is_available():
        return
    device = int(environment_value("LOCAL_RANK") or 0)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(rank_fraction(settings, total), device)


def rank_fraction(settings: Settings, total: int) -> float:
    """Share of a GPU of `total` bytes that is left for a rank's tensors, over 0.

    The rest is the server's, and what CUDA and NCCL take outside of PyTorch's allocator.
    """
    return 1 - settings.rollout.gpu_memory_utilization - CONTEXT_GIB * GIB / total
