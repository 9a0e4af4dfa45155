"""A file of a version: opened safely, and verified before anything is loaded from it.

No torch: the safetensors layout is eight bytes of header length, a JSON header, then the tensors'
bytes (https://huggingface.co/docs/safetensors).
"""

import hashlib
import json
import math
import mmap
import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_service.engine import FileWeights
from rollout_service.transports.base import Staged
from services.errors import InvalidInputError, NotFoundError
from services.schemas.weights import CommitRequest, TensorEntry

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 64 * 1024 * 1024
_DTYPES = {"F32": ("float32", 4), "BF16": ("bfloat16", 2), "F16": ("float16", 2)}
_MAX_HASH_THREADS = 16
"""hashlib works outside Python's global lock; one thread does 1 to 2 GB/s."""


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """A tensor as a file's header describes it; `begin` and `end` count from the header's end."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


class StagedFile(Staged):
    """A verified file, kept open: what is loaded is what was verified, even if it is unlinked."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        """How this host's processes of the same user reach the open file."""

    def weights(self, request: CommitRequest) -> FileWeights:
        """See `Staged.weights`."""
        return FileWeights(path=self.path)

    def close(self) -> None:
        """Let go of it. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def stage_file(path: Path, expected: Mapping[str, TensorEntry]) -> StagedFile:
    """Open and verify a file. Call it in a thread: a second per gigabyte and core.

    Args:
        path: Neither it nor its folder may be a symbolic link.
        expected: Names, shapes, dtypes and digests of all its tensors.

    Raises:
        NotFoundError: There is no such file, or it is no plain file of this user.
        InvalidInputError: It is not safetensors, or not what the manifest says; the message names
            the tensor.
    """
    descriptor = open_plain(path)
    staged = StagedFile(descriptor)
    try:
        _verify(descriptor, expected)
    except BaseException:
        staged.close()
        raise
    return staged


def open_plain(path: Path) -> int:
    """A descriptor for reading a plain file of this user; no link on the way is followed.

    Raises:
        NotFoundError: There is none.
    """
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


def header_length(prefix: bytes | memoryview) -> int:
    """Bytes of the JSON header, of the file's first eight bytes."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES or length > MAX_HEADER_BYTES:
        raise InvalidInputError("the file of weights is not safetensors: its header is too long")
    return length


def parse_header(text: bytes, num_bytes: int | None = None) -> dict[str, TensorSpan]:
    """Tensors by name.

    Args:
        text: The JSON header.
        num_bytes: Of the tensors that follow it; None where they are not there yet.

    Raises:
        InvalidInputError: It is not a header, or points outside the file.
    """
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError("the file of weights is not safetensors: no JSON header") from error
    if not isinstance(header, dict):
        raise InvalidInputError("the file of weights is not safetensors: no JSON object")
    header.pop("__metadata__", None)
    spans = {name: _span(name, entry) for name, entry in header.items()}
    end = max((span.end for span in spans.values()), default=0)
    if num_bytes is not None and end > num_bytes:
        name = next(name for name, span in spans.items() if span.end == end)
        raise InvalidInputError(f"{name}: the file is cut short or its offsets are wrong")
    return spans


def compare_header(header: Mapping[str, TensorSpan], expected: Mapping[str, TensorEntry]) -> None:
    """Refuse a file whose tensors are not those of the manifest.

    Raises:
        InvalidInputError: It names the first difference.
    """
    differing = sorted(header.keys() ^ expected.keys())
    if differing:
        where = "file" if differing[0] in expected else "manifest"
        raise InvalidInputError(
            f"{len(differing)} tensors differ; {differing[0]} is not in the {where}"
        )
    for name, entry in expected.items():
        found = header[name]
        if (found.dtype, found.shape) != (entry.dtype, entry.shape):
            raise InvalidInputError(
                f"{name} is {found.dtype} {found.shape}; "
                f"the manifest says {entry.dtype} {entry.shape}"
            )


def compare_digests(digests: Mapping[str, str], expected: Mapping[str, TensorEntry]) -> None:
    """Refuse tensors with other bytes than the manifest's.

    Raises:
        InvalidInputError: It names the first of them.
    """
    for name, entry in expected.items():
        if digests[name] != entry.sha256:
            raise InvalidInputError(f"{name}: its sha256 is not the manifest's")


def describe_file(path: Path) -> dict[str, TensorEntry]:
    """What a manifest says of a file's tensors.

    Raises:
        NotFoundError: There is no such file, or it is no plain file of this user.
        InvalidInputError: It is not safetensors.
    """
    descriptor = open_plain(path)
    try:
        header, data = _read(descriptor)
    finally:
        os.close(descriptor)
    digests = _digests(data, header)
    return {
        name: TensorEntry.model_validate(
            {"shape": span.shape, "dtype": span.dtype, "sha256": digests[name]}
        )
        for name, span in header.items()
    }


def _verify(descriptor: int, expected: Mapping[str, TensorEntry]) -> None:
    header, data = _read(descriptor)
    compare_header(header, expected)
    compare_digests(_digests(data, header), expected)


def _read(descriptor: int) -> tuple[dict[str, TensorSpan], memoryview]:
    """A file's tensors by name, and all their bytes."""
    data = _mapped(descriptor)
    start = LENGTH_BYTES + header_length(data[:LENGTH_BYTES])
    if start > len(data):
        raise InvalidInputError("the file of weights is not safetensors: its header is too long")
    return parse_header(bytes(data[LENGTH_BYTES:start]), len(data) - start), data[start:]


def _digests(data: memoryview, header: Mapping[str, TensorSpan]) -> dict[str, str]:
    def digest(name: str) -> str:
        return hashlib.sha256(data[header[name].begin : header[name].end]).hexdigest()

    # The largest first: else one of them may be left over for a single thread.
    names = sorted(header, key=lambda name: header[name].begin - header[name].end)
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _MAX_HASH_THREADS)) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _mapped(descriptor: int) -> memoryview:
    """The file's bytes; unmapped when the last slice of them is gone."""
    size = os.fstat(descriptor).st_size
    if size < LENGTH_BYTES:
        raise InvalidInputError("the file of weights is not safetensors: it is too short")
    return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two entries counted would be the reader's choice: vLLM's may be another."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _span(name: str, entry: Any) -> TensorSpan:
    try:
        dtype, size = _DTYPES[entry["dtype"]]
        shape = [int(n) for n in entry["shape"]]
        begin, end = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{name}: the file's entry is not usable") from error
    if not 0 <= begin <= end or end - begin != size * math.prod(shape):
        raise InvalidInputError(f"{name}: the file is cut short or its offsets are wrong")
    return TensorSpan(dtype, shape, begin, end)
