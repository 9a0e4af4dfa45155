"""The sha256 of each tensor of a version: made where it is written, checked where it arrives."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from services.errors import InvalidInputError
from services.schemas.weights import TensorEntry
from weight_sync.file_format import TensorSpan, shown

_MAX_THREADS = 16
"""hashlib works outside Python's global lock; one thread does 1 to 2 GB/s."""


def tensor_digests(data: memoryview, spans: Mapping[str, TensorSpan]) -> dict[str, str]:
    """The sha256 of each tensor, in hexadecimal digits, by its name."""

    def digest(name: str) -> str:
        return hashlib.sha256(data[spans[name].begin : spans[name].end]).hexdigest()

    # The largest first: else one of them may be left over for a single thread.
    names = sorted(spans, key=lambda name: spans[name].begin - spans[name].end)
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _MAX_THREADS)) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def compare_digests(digests: Mapping[str, str], expected: Mapping[str, TensorEntry]) -> None:
    """Refuse tensors with other bytes than the manifest's.

    Raises:
        InvalidInputError: It names the first of them.
    """
    for name, entry in expected.items():
        if digests[name] != entry.sha256:
            raise InvalidInputError(f"{shown(name)}: its sha256 is not the manifest's")
