"""The GPUs that vLLM samples on. With packages for CUDA there are some, or the server ends."""

import torch
from vllm.platforms import current_platform

from services.errors import EngineError, SettingsError


def own_gpus(number: int) -> tuple[str, ...]:
    """UUIDs of the GPUs that this process's engine takes; none where vLLM is built for CPUs.

    Asked of the driver: CUDA is not initialised here, for vLLM's processes are forked.

    Args:
        number: `rollout.tensor_parallel_size`.

    Raises:
        EngineError: VLLM is built for CUDA, and its driver shows no GPU.
        SettingsError: It shows too few.
    """
    if current_platform.is_cpu():
        return ()
    if not current_platform.is_cuda():
        raise EngineError(
            "vLLM is built for CUDA and finds no GPU: `sgg-rl doctor` looks at the driver; install "
            "the CPU packages (EXTRA=cpu) to sample on the CPU"
        )
    if (found := current_platform.device_count()) < number:
        raise SettingsError(
            f"rollout.tensor_parallel_size = {number} needs so many GPUs, and this server sees "
            f"{found}: set it lower, or give the server more with CUDA_VISIBLE_DEVICES (Slurm: "
            "--gpus-per-task)"
        )
    return tuple(str(current_platform.get_device_uuid(index)) for index in range(number))


def why_not(error: Exception) -> str:
    """What kept vLLM from starting: its worker's end says nothing of CUDA.

    Initialises CUDA: for processes that start no other any more.
    """
    if current_platform.is_cpu() or torch.cuda.is_available():
        return str(error)
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as reason:
        return f"torch cannot use the GPU: {str(reason).splitlines()[0]}"
    return str(error)
