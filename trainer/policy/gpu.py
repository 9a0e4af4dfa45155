"""Whether training is on GPUs, and a rank's part of one that a rollout server is on too."""

import torch

from services.errors import SettingsError
from services.host.environment import environment_value
from services.host.gpu import CONTEXT_GIB, GIB
from services.settings import Settings


def check_cuda() -> None:
    """Refuse to train on the CPU because torch, which is built for CUDA, cannot use the GPU.

    `CUDA_VISIBLE_DEVICES=` (empty) says that none is wanted.

    Raises:
        SettingsError: With CUDA's reason.
    """
    unwanted = environment_value("CUDA_VISIBLE_DEVICES") == ""
    if torch.version.cuda is None or unwanted or torch.cuda.is_available():
        return
    try:
        torch.cuda.init()
        reason = "it sees no device"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
    raise SettingsError(
        f"torch is built for CUDA {torch.version.cuda} and cannot use a GPU here: {reason}; "
        "`sgg-rl doctor` looks at the driver; CUDA_VISIBLE_DEVICES= (empty) trains on the CPU"
    )


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
