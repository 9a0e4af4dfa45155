"""LoRA adapters (arXiv 2106.09685) as vLLM knows them: numbers, names, folders.

With the `lora` transport the policy is itself an adapter over the weights that the server started
with. It is there from the start, as one that changes nothing: so requests in flight at the first
commit are on it already, and go on with the new tensors. Its folder keeps its name from version to
version, because vLLM remembers the folder's name with each request and reads it again after every
weight update, when it forgets all adapters that it had loaded.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from vllm.lora.request import LoRARequest

from services.schemas.weights import AdapterConfig
from services.settings import Settings
from weight_sync.transports.files import private_folder
from weight_sync.transports.lora import write_config
from weight_sync.transports.uploads.spool import spool_folder

POLICY_ADAPTER = "policy"
"""vLLM's name of the adapter that is trained."""
_POLICY_ID = 1
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM 0.32 keeps room for."""

_UNUSED = {
    f"base_model.model.of_no_model.o_proj.lora_{half}.weight": np.zeros((1, 1), np.float32)
    for half in "AB"
}
"""vLLM refuses an adapter without tensors; layers that it does not name stay as they are."""


def lora_args(settings: Settings) -> dict[str, Any]:
    """Arguments of vLLM's engine; none where no adapter is served."""
    num_adapters = len(settings.rollout.adapters) + settings.weights.traits.adapter_alone
    if not num_adapters:
        return {}
    rank = min(rank for rank in _RANKS if rank >= settings.rollout.max_lora_rank)
    return {"enable_lora": True, "max_loras": num_adapters, "max_lora_rank": rank}


def lora_request(settings: Settings, adapter: str | None) -> LoRARequest | None:
    """What a prompt is sampled with beside the model.

    Args:
        settings: The run's settings.
        adapter: A name of `rollout.adapters`; None for the policy.
    """
    if adapter is not None:
        number = _POLICY_ID + 1 + sorted(settings.rollout.adapters).index(adapter)
        folder = settings.rollout.adapters[adapter].absolute()
        return LoRARequest(adapter, number, str(folder))
    if settings.weights.traits.adapter_alone:
        return LoRARequest(POLICY_ADAPTER, _POLICY_ID, str(policy_folder(settings)))
    return None


def policy_folder(settings: Settings) -> Path:
    """Where vLLM reads the policy's adapter, always."""
    return spool_folder(settings) / "policy"


def write_initial_adapter(settings: Settings) -> None:
    """The policy's adapter before its first version: one that changes nothing."""
    if settings.weights.traits.adapter_alone:
        folder = policy_folder(settings)
        private_folder(folder.parent)
        private_folder(folder)
        (folder / "adapter_model.safetensors").write_bytes(save(_UNUSED))
        write_config(folder, AdapterConfig(rank=1, alpha=1.0), _UNUSED)


def install_adapter(settings: Settings, folder: Path) -> None:
    """Put a version's adapter where vLLM reads the policy's."""
    shutil.copytree(folder, policy_folder(settings), dirs_exist_ok=True)
