"""A file of a version: opened safely, and verified before anything is loaded from it.

No torch: the safetensors layout is eight bytes of header length, a JSON header, then the tensors'
bytes.
"""

import hashlib
import mmap
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rollout_service.engine import FileWeights
from rollout_service.transports.base import Staged
from rollout_service.transports.safetensors_header import (
    LENGTH_BYTES,
    TensorSpan,
    header_length,
    parse_header,
    shown,
)
from services.errors import InvalidInputError, NotFoundError
from services.schemas.weights import CommitRequest, TensorEntry

_MAX_HASH_THREADS = 16
"""hashlib works outside Python's global lock; one thread does 1 to 2 GB/s."""


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


def compare_header(header: Mapping[str, TensorSpan], expected: Mapping[str, TensorEntry]) -> None:
    """Refuse a file whose tensors are not those of the manifest.

    Raises:
        InvalidInputError: It names the first difference.
    """
    differing = sorted(header.keys() ^ expected.keys())
    if differing:
        where = "file" if differing[0] in expected else "manifest"
        raise InvalidInputError(
            f"{len(differing)} tensors differ; {shown(differing[0])} is not in the {where}"
        )
    for name, entry in expected.items():
        found = header[name]
        if (found.dtype, found.shape) != (entry.dtype, entry.shape):
            raise InvalidInputError(
                f"{shown(name)} is {found.dtype} {found.shape}; "
                f"the manifest says {entry.dtype} {entry.shape}"
            )


def compare_digests(digests: Mapping[str, str], expected: Mapping[str, TensorEntry]) -> None:
    """Refuse tensors with other bytes than the manifest's.

    Raises:
        InvalidInputError: It names the first of them.
    """
    for name, entry in expected.items():
        if digests[name] != entry.sha256:
            raise InvalidInputError(f"{shown(name)}: its sha256 is not the manifest's")


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
        raise InvalidInputError("the file of weights is not safetensors: its header is cut short")
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
