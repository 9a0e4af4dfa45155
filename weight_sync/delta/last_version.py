"""The trainer's end: it keeps the version before, and finds what the next one changes."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from services.schemas.weights import TensorEntry
from weight_sync.delta import LARGEST_SHARE
from weight_sync.delta.encoding import TensorDelta, advance
from weight_sync.delta.patching import GAPS, VALUES
from weight_sync.digests import num_threads, tensor_digest
from weight_sync.file_format import describe, raw_bytes

logger = logging.getLogger(__name__)
_Item = tuple[str, Tensor]


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
    """The tensors of the version that was sent last, on the host, in memory of its own.

    Each version is compared with them and written over them, so they take a version's memory and no
    more, and whoever gives a tensor has it back at once.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        """In the order of the version; empty before the first, and where one was broken off."""
        self._chain_bytes = 0

    def keep(self, weights: Iterable[_Item]) -> Iterator[_Item]:
        """The tensors of a version that is sent whole, which is then the last one."""
        spare, self.tensors, self._chain_bytes, taken = self.tensors, {}, 0, {}
        for name, tensor in weights:
            taken[name] = _copied(tensor, spare.pop(name, None))
            yield name, taken[name]
        self.tensors = taken

    def compare(self, weights: Iterator[_Item]) -> tuple[FoundDelta | None, Iterable[_Item]]:
        """What a version changes, where it pays to send that; the version is then the last one.

        Returns:
            The delta, if it pays, and the tensors to send whole if it does not.
        """
        tensors, self.tensors = self.tensors, {}
        most = LARGEST_SHARE * sum(t.nbytes for t in tensors.values()) - self._chain_bytes
        found, left = _compared(tensors, weights, most)
        self.tensors = tensors
        if found is not None:
            self._chain_bytes += found.num_bytes
            return found, ()
        logger.info(
            "a whole version is sent: its delta, with those since the last whole one, would take "
            "over %.0f %% of its bytes, or it has other tensors than the version before",
            100 * LARGEST_SHARE,
        )
        return None, left


def _compared(
    tensors: dict[str, Tensor], weights: Iterator[_Item], most: float
) -> tuple[FoundDelta | None, Iterable[_Item]]:
    """Turn the tensors into a version's, as far as it comes.

    Returns:
        What that changed, and nothing. Once it is more than `most` bytes, or a tensor is another:
        None, and the version's tensors, those of `tensors` that are turned already among them.

    Raises:
        MemoryError: And whatever else a tensor's comparison raises: it may be half turned.
    """
    found = FoundDelta()
    running: deque[tuple[str, Tensor, Future[tuple[TensorDelta, str]]]] = deque()
    turned: list[_Item] = []
    most_running = num_threads()  # comparing and digesting work outside Python's global lock

    def turn_the_rest() -> None:
        while running:
            found.add(*running.popleft())

    with ThreadPoolExecutor(most_running) as pool:
        for name, tensor in weights:
            last = tensors.get(name)
            if last is None or (last.shape, last.dtype) != (tensor.shape, tensor.dtype):
                turn_the_rest()
                return None, chain(turned, [(name, tensor)], weights)
            turned.append((name, last))
            running.append((name, tensor, pool.submit(_difference, last, tensor)))
            if len(running) > most_running:
                found.add(*running.popleft())
            if found.num_bytes > most:
                turn_the_rest()
                return None, chain(turned, weights)
        turn_the_rest()
    if len(turned) < len(tensors) or found.num_bytes > most:
        return None, turned
    return found, ()


def _difference(last: Tensor, new: Tensor) -> tuple[TensorDelta, str]:
    bits = np.uint32 if new.dtype == torch.float32 else np.uint16
    raw = raw_bytes(new)
    delta = advance(np.frombuffer(raw_bytes(last), bits), np.frombuffer(raw, bits))
    return delta, tensor_digest(raw)


def _copied(tensor: Tensor, memory: Tensor | None) -> Tensor:
    """A copy, in that memory where it fits."""
    if memory is None or (memory.shape, memory.dtype) != (tensor.shape, tensor.dtype):
        memory = torch.empty(tensor.shape, dtype=tensor.dtype)
    return memory.copy_(tensor)
