"""The trainer's end: it keeps the version before, and finds what the next one changes."""

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from services.schemas.weights import TensorEntry
from weight_sync.delta import LARGEST_SHARE
from weight_sync.delta.encoding import TensorDelta, encode
from weight_sync.delta.patching import GAPS, VALUES
from weight_sync.digests import tensor_digest
from weight_sync.file_format import describe, raw_bytes

logger = logging.getLogger(__name__)
_Item = tuple[str, Tensor]

_THREADS = 4
"""Each compares, encodes and digests one tensor at a time, outside Python's global lock."""


@dataclass
class FoundDelta:
    """What one version changes of the one before."""

    entries: dict[str, TensorEntry] = field(default_factory=dict)
    """The manifest's tensors: of the result."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    num_elements: int = 0
    num_changed: int = 0
    num_bytes: int = 0

    @property
    def changed_share(self) -> float:
        """How many of the version's elements, as a share."""
        return self.num_changed / max(1, self.num_elements)

    def content(self) -> bytes:
        """The delta's safetensors file."""
        content: bytes = save(self.parts)
        return content

    def add(self, name: str, tensor: Tensor, found: "Future[tuple[TensorDelta, str]]") -> None:
        """Note one tensor's change, and its digest."""
        delta, digest = found.result()
        self.entries[name] = describe(tensor, digest)
        self.num_elements += tensor.numel()
        self.num_changed += len(delta.values)
        self.num_bytes += delta.num_bytes
        if len(delta.values):
            self.parts[name + GAPS] = torch.from_numpy(delta.gaps)
            self.parts[name + VALUES] = torch.from_numpy(delta.values).view(tensor.dtype)


class LastVersion:
    """The tensors of the version that was sent last, on the host.

    They are replaced one by one and never written to: they take a version's memory, and no more.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        """In the order of the version; empty before the first, and where one was broken off."""
        self._chain_bytes = 0

    def keep(self, weights: Iterator[_Item]) -> Iterator[_Item]:
        """The tensors of a version that is sent whole, which is then the last one."""
        self.tensors, self._chain_bytes, taken = {}, 0, {}
        for name, tensor in weights:
            taken[name] = tensor
            yield name, tensor
        self.tensors = taken

    def compare(self, weights: Iterator[_Item]) -> tuple[FoundDelta | None, Iterator[_Item]]:
        """What a version changes, where it pays to send that; the version is then the last one.

        Returns:
            The delta, if it pays, and the tensors to send whole if it does not.
        """
        before, self.tensors = self.tensors, {}
        taken: list[_Item] = []
        most = LARGEST_SHARE * sum(t.nbytes for t in before.values()) - self._chain_bytes
        found = _compared(before, _noted(weights, taken), most)
        if found is None:
            logger.info(
                "a whole version is sent: its delta, with those since the last whole one, would "
                "take over %.0f %% of its bytes, or it has other tensors than the version before",
                100 * LARGEST_SHARE,
            )
            return None, chain(taken, weights)
        self.tensors = dict(taken)
        self._chain_bytes += found.num_bytes
        return found, iter(())


def _noted(weights: Iterator[_Item], taken: list[_Item]) -> Iterator[_Item]:
    for item in weights:
        taken.append(item)
        yield item


def _compared(
    before: dict[str, Tensor], weights: Iterator[_Item], most: float
) -> FoundDelta | None:
    """None once it is more than so many bytes, or the tensors are others; `before` is emptied."""
    found = FoundDelta()
    running: deque[tuple[str, Tensor, Future[tuple[TensorDelta, str]]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, tensor in weights:
            base = before.pop(name, None)
            if base is None or (base.shape, base.dtype) != (tensor.shape, tensor.dtype):
                return None
            running.append((name, tensor, pool.submit(_difference, base, tensor)))
            if len(running) > _THREADS:
                found.add(*running.popleft())
            if found.num_bytes > most:
                return None
        while running:
            found.add(*running.popleft())
    return None if before or found.num_bytes > most else found


def _difference(base: Tensor, new: Tensor) -> tuple[TensorDelta, str]:
    bits = np.uint32 if new.dtype == torch.float32 else np.uint16
    before, after = (np.frombuffer(raw_bytes(t), bits) for t in (base, new))
    return encode(before, after), tensor_digest(raw_bytes(new))
