"""From a GPU to the host: through page-locked memory, and beside what the GPU computes."""

from collections.abc import Iterable, Iterator
from functools import cache

import torch
from torch import Tensor

_SPARE_BYTES = 4 * 2**30
"""Left free on a GPU: for the next bucket that is gathered, and what a broadcast packs."""


def on_host(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor on the host, when it is asked for; one that is there is passed on.

    The caller's thread waits for the copy and no other does. The memory is page-locked; torch keeps
    it and uses it again once the taker has let go of the tensor, so hold few at a time.

    Args:
        weights: Names and tensors, made by work on the default stream of their GPU.
    """
    for name, tensor in weights:
        yield name, _page_locked(tensor) if tensor.is_cuda else tensor


def kept_on_host(tensor: Tensor) -> Tensor:
    """A tensor in ordinary memory of the host, to be held for long."""
    return _page_locked(tensor).clone() if tensor.is_cuda else tensor


def has_room(device: torch.device) -> bool:
    """Whether this process may put more into a GPU's memory and leave some free."""
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    used, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total
    return bool(min(free + reserved, allowed) - used > _SPARE_BYTES)


def _page_locked(tensor: Tensor) -> Tensor:
    with torch.cuda.device(tensor.device):
        stream = _stream(tensor.device)
        stream.wait_stream(torch.cuda.default_stream())
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        with torch.cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)
        stream.synchronize()
    return host


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
