"""Has vLLM set itself up for an H100 that is not there, as far as no device is touched.

python -m tests.cuda.h100_driver '{"model": {"path": "assets/toy-start"}, …}'   # settings of a run

prints what it would run as JSON. A process of its own, for vLLM chooses its platform at import.
"""

import ctypes
import json
import sys
from types import ModuleType

try:
    ctypes.CDLL("libcuda.so.1")
except OSError:  # without the driver's library vLLM's kernels cannot be loaded; none is called here
    sys.modules["vllm._C_stable_libtorch"] = ModuleType("vllm._C_stable_libtorch")

import vllm.platforms
from vllm.platforms.cuda import NonNvmlCudaPlatform
from vllm.platforms.interface import DeviceCapability


class H100(NonNvmlCudaPlatform):  # type: ignore[misc]
    """What the driver would say; all else is vLLM's platform for CUDA."""

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        return DeviceCapability(major=9, minor=0)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "NVIDIA H100 80GB HBM3"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return 80 * 2**30

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        return 132

    @classmethod
    def is_integrated_gpu(cls, device_id: int = 0) -> bool:
        return False


def main() -> None:
    vllm.platforms._current_platform = H100()
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    from rollout_service.vllm_engine import engine_args
    from services.settings import Settings

    arguments = engine_args(Settings.model_validate_json(sys.argv[1]))
    config = arguments.create_engine_config()
    wrapper = WorkerWrapperBase(rpc_rank=0)
    wrapper.init_worker(
        [
            {
                "vllm_config": config,
                "local_rank": 0,
                "rank": 0,
                "distributed_init_method": "tcp://127.0.0.1:1",
                "is_driver_worker": True,
            }
        ]
    )
    facts = {
        "worker": config.parallel_config.worker_cls,
        "backend": config.weight_transfer_config.backend,
        "logprobs_mode": config.model_config.logprobs_mode,
        "gpu_memory_utilization": config.cache_config.gpu_memory_utilization,
        "adapters": config.lora_config and config.lora_config.max_loras,
        "worker_has": dir(wrapper.worker),
    }
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
