"""Whether a model can be spread over a server's GPUs, known from its config.json alone.

Each GPU gets an equal part of the attention heads and of the MLPs' width. Key and value heads are
repeated where there are fewer of them than GPUs (vLLM, `QKVParallelLinear`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from planning.shapes import KNOWN
from services.errors import SettingsError
from services.models.families import model_config
from services.settings import Settings

_DIVIDED = {
    "text_config": (
        "num_attention_heads",
        "intermediate_size",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "linear_num_key_heads",
        "linear_num_value_heads",
    ),
    "vision_config": ("num_heads", "intermediate_size"),
}
"""Sizes that have to be multiples of the number of GPUs."""
_MOST = 16
"""GPUs of a server that a message proposes."""


def check_tensor_parallel(settings: Settings) -> None:
    """Refuse a `rollout.tensor_parallel_size` by which the model cannot be divided.

    Raises:
        SettingsError: With the size that does not divide, and what would fit.
        UnavailableError: The model is of the hub, which was not reached.
    """
    size, path = settings.rollout.tensor_parallel_size, settings.model.path
    if size == 1:
        return
    config = KNOWN.get(path) or model_config(path)
    wrong = next(_undivided(config, size), None)
    if wrong is not None:
        fitting = [n for n in range(1, _MOST + 1) if not any(_undivided(config, n))]
        raise SettingsError(
            f"rollout.tensor_parallel_size = {size} does not divide {path}, whose {wrong}: set it "
            f"to {', '.join(map(str, fitting[:-1]))} or {fitting[-1]}"
        )


def _undivided(config: Mapping[str, Any], size: int) -> Iterator[str]:
    """Sizes that so many GPUs cannot share, such as `text_config.num_attention_heads is 12`."""
    for part, names in _DIVIDED.items():
        sizes = config.get(part, config)
        for name in names:
            if (sizes.get(name) or 0) % size:
                yield f"{part}.{name} is {sizes[name]}"
    heads = config.get("text_config", config).get("num_key_value_heads") or size
    if heads % size and size % heads:
        yield f"text_config.num_key_value_heads is {heads}"
