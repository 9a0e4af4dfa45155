"""Ends a start whose torch is built for CUDA but finds no GPU."""

import torch

from services.errors import SettingsError
from services.host.environment import environment_value


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
