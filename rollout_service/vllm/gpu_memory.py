"""What vLLM takes of each of its GPUs: weights, KV cache, and what is beside them."""

from typing import Any

from services.errors import SettingsError
from services.settings import Settings

_GIB = 2**30
_BESIDE_GIB = 4.0
"""Beside weights and KV cache, for models of up to 8 billion parameters: CUDA's context (0.5), the
graphs (1), a batch of 2,048 tokens with its images and logits (1), the embedding once more while
weights are replaced (1), and gaps."""


def server_memory(settings: Settings, total: int, weights: int) -> dict[str, Any]:
    """Arguments of vLLM for a KV cache that fills the server's share, whatever the rank has taken.

    vLLM takes what others allocate while it measures for its own, and at its start wants the share
    free that `gpu_memory_utilization` names. So the cache's size is given, and as the share what
    will be in vLLM's own tensors: a server that starts again beside a rank of full size finds that.

    Args:
        settings: The run's settings.
        total: Bytes of one of its GPUs.
        weights: Bytes of the model, of which each GPU has an equal part.

    Raises:
        SettingsError: The share has no room for a cache, or the weights are unknown.
    """
    if not weights:
        raise SettingsError(
            f"{settings.model.path} has no safetensors, which say how much of a shared GPU it takes"
        )
    share = settings.rollout.gpu_memory_utilization
    part = weights / settings.rollout.tensor_parallel_size
    cache = int(share * total - part - _BESIDE_GIB * _GIB)
    if cache <= 0:
        raise SettingsError(
            f"rollout.gpu_memory_utilization = {share:g} of {total / _GIB:.1f} GiB has no room for "
            f"a KV cache beside {part / _GIB:.1f} GiB of weights and {_BESIDE_GIB:g} GiB for "
            "graphs and activations: raise it, or rollout.tensor_parallel_size"
        )
    return {"kv_cache_memory_bytes": cache, "gpu_memory_utilization": (part + cache) / total}
