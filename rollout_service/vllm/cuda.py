"""The GPU that vLLM samples on. With packages for CUDA there is one, or the server ends."""

import torch
from vllm.platforms import current_platform

from services.errors import EngineError


def own_gpu() -> str | None:
    """UUID of this process's GPU; None where vLLM is built for CPUs.

    Asked of the driver: CUDA is not initialised here, for vLLM's processes are forked.

    Raises:
        EngineError: VLLM is built for CUDA, and its driver shows no GPU.
    """
    if current_platform.is_cpu():
        return None
    if not current_platform.is_cuda():
        raise EngineError(
            "vLLM is built for CUDA and finds no GPU: `sgg-rl doctor` looks at the driver; install "
            "the CPU packages (EXTRA=cpu) to sample on the CPU"
        )
    return str(current_platform.get_device_uuid(0))


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
