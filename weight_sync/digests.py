"""The digest of each tensor of a version: made where it is written, checked where it arrives.

BLAKE3 is a tree of 1 KiB chunks, and vector units work on many of them at once: on one core it
takes less than half of sha256's time.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from blake3 import blake3

from services.errors import InvalidInputError
from services.schemas.weights import DigestAlgorithm, WeightManifest, shown

T = TypeVar("T")

ALGORITHM: DigestAlgorithm = "blake3"
"""The one that versions are described with from now on."""
_MAX_THREADS = 16
"""A server's, whatever its host has: several servers share one. Hashing works outside Python's
global lock, at 2 to 5 GB/s a core."""


class Hash(Protocol):
    """A digest in the making, as `hashlib` has them."""

    def update(self, data: memoryview, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes so far, in hexadecimal digits."""


def new_hash(algorithm: DigestAlgorithm = ALGORITHM) -> Hash:
    """A digest of no bytes yet."""
    return blake3() if algorithm == "blake3" else hashlib.sha256()


def tensor_digest(data: memoryview, algorithm: DigestAlgorithm = ALGORITHM) -> str:
    """The digest of a tensor's bytes in row-major order, in hexadecimal digits."""
    made = new_hash(algorithm)
    made.update(data)
    return made.hexdigest()


def tensor_digests(
    tensors: Mapping[str, memoryview], algorithm: DigestAlgorithm = ALGORITHM
) -> dict[str, str]:
    """The digest of each tensor, by its name; on all cores, up to `_MAX_THREADS`."""
    return of_each(tensors, lambda name: tensor_digest(tensors[name], algorithm))


def num_threads() -> int:
    """Threads that hash at the same time: as many as cores, up to `_MAX_THREADS`."""
    return min(len(os.sched_getaffinity(0)), _MAX_THREADS)


def of_each(tensors: Mapping[str, memoryview], work: Callable[[str], T]) -> dict[str, T]:
    """What some work gives for each tensor, by its name; on all cores, up to `_MAX_THREADS`.

    What one raises is raised once all have ended.
    """
    # The largest first: else one of them may be left over for a single thread.
    names = sorted(tensors, key=lambda name: -len(tensors[name]))
    with ThreadPoolExecutor(num_threads()) as pool:
        return dict(zip(names, pool.map(work, names), strict=True))


def compare_digests(digests: Mapping[str, str], manifest: WeightManifest) -> None:
    """Refuse tensors with other bytes than the manifest's.

    Raises:
        InvalidInputError: It names the first of them.
    """
    for name, entry in manifest.tensors.items():
        if digests[name] != entry.digest:
            raise InvalidInputError(
                f"{shown(name)}: its {manifest.algorithm} is not the manifest's"
            )
