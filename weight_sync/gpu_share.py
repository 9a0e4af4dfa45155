"""A version's tensors on one rank's GPU, for the rollout server there to read."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from services.schemas.common import Message
from services.schemas.weights import IpcHandle
from services.weights import encode_ipc


class RankShare(Message):
    """What a rank shares.

    Example: `{"gpu": "3f1c…", "handles": {"lm_head.weight": {…}}}`
    """

    gpu: str
    """UUID, without NVIDIA's `GPU-`."""
    handles: dict[str, IpcHandle]
    """By tensor name."""


class SharedTensors:
    """They lie in the GPU's memory until `close`."""

    def __init__(self, weights: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
        """Shares them as `torch.multiprocessing` does, where they are if that is the GPU.

        Args:
            weights: Names and tensors of a version.
            device: The GPU.
        """
        gpu = gpu_uuid(device)
        self._tensors = {name: tensor.to(device).contiguous() for name, tensor in weights}
        handles = {
            name: encode_ipc(gpu, reduce_tensor(tensor)[1])
            for name, tensor in self._tensors.items()
        }
        self.share = RankShare(gpu=gpu, handles=handles)

    def close(self) -> None:
        """Give the memory back; nobody may read it any more."""
        self._tensors.clear()
        torch.cuda.ipc_collect()


def gpu_uuid(device: torch.device) -> str:
    """Of a GPU of this process."""
    return bare(str(torch.cuda.get_device_properties(device).uuid))


def bare(uuid: str) -> str:
    """NVIDIA's library puts `GPU-` before what CUDA says."""
    return uuid.removeprefix("GPU-")
