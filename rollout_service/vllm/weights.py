"""How an engine's weights change while it is paused: through vLLM's RL API alone.

`rollout_service.vllm.worker` is the other end, in vLLM's worker processes.
"""

import asyncio
import time
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

from rollout_service.vllm.lora import install_adapter, lora_request
from services.errors import WaitTimeoutError
from services.schemas.weights import Rendezvous, WeightManifest
from services.settings import Settings
from weight_sync.engine import Staged
from weight_sync.transports.files import StagedFile
from weight_sync.transports.ipc import StagedHandles
from weight_sync.transports.lora import StagedAdapter

_JOIN_S = 40.0
"""All servers and the trainer meet within this time; the trainer waits a little longer."""


async def join(llm: Any, rendezvous: Rendezvous) -> None:
    """Meet the trainer in a NCCL group; the first ones wait, and sample meanwhile.

    Raises:
        WaitTimeoutError: Not all came. vLLM's errors where NCCL fails.
    """
    await llm.init_weight_transfer_engine(
        WeightTransferInitRequest(init_info=rendezvous.model_dump())
    )
    deadline = time.monotonic() + _JOIN_S
    while not all(await llm.collective_rpc("sgg_is_connected")):
        if time.monotonic() > deadline:
            raise WaitTimeoutError(
                f"waited {_JOIN_S:g} s for the trainer and the other servers to join the NCCL "
                f"group of {rendezvous.world_size}; stage again with a new unique_id"
            )
        await asyncio.sleep(0.05)


async def load(llm: Any, settings: Settings, staged: Staged, manifest: WeightManifest) -> None:
    """Replace the weights, and clear the caches that depend on them.

    Nothing is sampled meanwhile, so there are as few calls as can be: each waits for this process
    and the engine's, which the outputs before the pause keep busy.
    """
    info = None if isinstance(staged, StagedAdapter) else _update_info(staged, manifest)
    await llm.collective_rpc("sgg_update_weights", args=(info,))
    if isinstance(staged, StagedAdapter):
        # vLLM has just forgotten all adapters. The others are loaded again when they are asked for.
        await asyncio.to_thread(install_adapter, settings, staged.folder)
        await llm.add_lora(lora_request(settings, None))
    # Requests in flight are prefilled again by the new weights.
    resets = [llm.reset_prefix_cache(reset_running_requests=True)]
    if manifest.vision_trained:
        resets.append(llm.reset_encoder_cache())
    await asyncio.gather(llm.update_weight_version(str(manifest.policy_version)), *resets)


def _update_info(staged: Staged, manifest: WeightManifest) -> dict[str, Any]:
    """A `worker.UpdateInfo`, in types that vLLM sends between its processes."""
    if isinstance(staged, StagedFile):
        return {"file": str(staged.path)}
    info: dict[str, Any] = {
        "names": list(manifest.tensors),
        "dtypes": [entry.dtype for entry in manifest.tensors.values()],
        "shapes": [entry.shape for entry in manifest.tensors.values()],
    }
    if isinstance(staged, StagedHandles):
        info["handles"] = [
            {gpu: handle.model_dump() for gpu, handle in staged.handles[name].items()}
            for name in manifest.tensors
        ]
    return info
