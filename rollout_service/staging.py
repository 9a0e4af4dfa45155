"""A version's file, opened safely and verified byte by byte before anything is loaded from it.

The place follows from run, incarnation and version, never from a request. No torch: the safetensors
layout is eight bytes of header length, a JSON header, then the tensors' bytes
(https://huggingface.co/docs/safetensors).
"""

import hashlib
import json
import math
import mmap
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from services.errors import InvalidInputError, NotFoundError
from services.schemas.weights import TensorEntry, WeightManifest
from services.weights import shm_file

_DTYPES = {"F32": ("float32", 4), "BF16": ("bfloat16", 2), "F16": ("float16", 2)}
_MAX_HEADER_BYTES = 64 * 1024 * 1024
_HASH_THREADS = 4
"""hashlib works outside Python's global lock; one thread does about 1 GB/s."""


class StagedFile:
    """A verified file, kept open: what is loaded is what was verified, even if it is unlinked."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        """How this host's processes of the same user reach the open file."""

    def close(self) -> None:
        """Let go of it. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def stage_shm(run: str, manifest: WeightManifest) -> StagedFile:
    """Open and verify the file of a version. Call it in a thread: a second per gigabyte and core.

    Raises:
        NotFoundError: There is no such file, or it is no plain file of this user.
        InvalidInputError: It is not safetensors, or not what the manifest says; the message names
            the tensor.
    """
    descriptor = _open(shm_file(run, manifest.incarnation, manifest.policy_version))
    staged = StagedFile(descriptor)
    try:
        _verify(descriptor, manifest.tensors)
    except BaseException:
        staged.close()
        raise
    return staged


def _open(path: Path) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        folder = os.open(path.parent, flags | os.O_DIRECTORY)
        try:
            descriptor = os.open(path.name, flags | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise NotFoundError(f"no weights at {path}: {error.strerror}") from error
    status = os.fstat(descriptor)
    # /dev/shm is open to all users of a host.
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
        os.close(descriptor)
        raise NotFoundError(f"{path} is not a plain file of this user")
    return descriptor


def _verify(descriptor: int, expected: Mapping[str, TensorEntry]) -> None:
    data = _mapped(descriptor)
    header, start = _header(data)
    differing = sorted(header.keys() ^ expected.keys())
    if differing:
        where = "file" if differing[0] in expected else "manifest"
        raise InvalidInputError(
            f"{len(differing)} tensors differ; {differing[0]} is not in the {where}"
        )

    def check(name: str) -> None:
        _check_tensor(name, header[name], expected[name], data[start:])

    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        for _ in pool.map(check, expected):
            pass


def _mapped(descriptor: int) -> memoryview:
    """The file's bytes; unmapped when the last slice of them is gone."""
    size = os.fstat(descriptor).st_size
    if size < 8:
        raise InvalidInputError("the file of weights is not safetensors: it is too short")
    return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))


def _header(data: memoryview) -> tuple[dict[str, Any], int]:
    """Tensor name to its entry, and where the tensors' bytes start."""
    length = int.from_bytes(data[:8], "little")
    if length > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise InvalidInputError("the file of weights is not safetensors: its header is too long")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError("the file of weights is not safetensors: no JSON header") from error
    if not isinstance(header, dict):
        raise InvalidInputError("the file of weights is not safetensors: no JSON object")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, 8 + length


def _check_tensor(name: str, found: Any, entry: TensorEntry, data: memoryview) -> None:
    try:
        dtype, size = _DTYPES[found["dtype"]]
        shape = [int(n) for n in found["shape"]]
        begin, end = (int(n) for n in found["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{name}: the file's entry is not usable") from error
    if (dtype, shape) != (entry.dtype, entry.shape):
        raise InvalidInputError(
            f"{name} is {dtype} {shape}; the manifest says {entry.dtype} {entry.shape}"
        )
    if not 0 <= begin <= end <= len(data) or end - begin != size * math.prod(shape):
        raise InvalidInputError(f"{name}: the file is cut short or its offsets are wrong")
    if hashlib.sha256(data[begin:end]).hexdigest() != entry.sha256:
        raise InvalidInputError(f"{name}: its sha256 is not the manifest's")
