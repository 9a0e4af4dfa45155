"""What the transports through a file have in common: where the file lies, and how it is staged.

It is opened safely, and verified before anything is loaded from it.
"""

import mmap
import os
import socket
import stat
import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from services.errors import InvalidInputError, NotFoundError, SettingsError
from services.schemas.weights import (
    TRANSPORTS,
    DigestAlgorithm,
    TensorEntry,
    Version,
    WeightManifest,
)
from services.settings import Settings
from services.waiting import RoomWait
from weight_sync.digests import ALGORITHM, compare_digests, tensor_digests
from weight_sync.engine import Staged
from weight_sync.file_format import (
    LENGTH_BYTES,
    TensorSpan,
    compare_header,
    header_length,
    parse_header,
    write_weights,
)
from weight_sync.transports.sender import NamedTensors, Sender

_DRAFT = ".draft"
"""Ends the name of a version that is not whole."""


class FileSender(Sender):
    """Writes each version to a file, in a folder that holds nothing else.

    Room is needed for one version, and for a second where servers read the file themselves: one
    that starts while a version is written reads the version before. What is older goes first.
    """

    durable: ClassVar[bool] = False
    """Whether the file is to outlive the machine."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._last: Path | None = None

    @abstractmethod
    def file(self, version: Version) -> Path:
        """Where a version lies."""

    def prepare(self, weights: NamedTensors, version: Version) -> dict[str, TensorEntry]:
        """See `Sender.prepare`. A full disk is waited for: `trainer.wait_timeout_s`.

        Raises:
            WaitTimeoutError: It stayed full.
        """
        from weight_sync.transports.host import on_host

        self._last = self.file(version)
        folder = private_folder(self._last.parent)
        self._remove_older(keep=int(TRANSPORTS[self.name].servers_fetch))
        room = RoomWait(folder, self._settings.trainer.wait_timeout_s)
        return write_weights(self._last, on_host(weights), room, durable=self.durable)

    def close(self) -> None:
        """See `Sender.close`."""
        if self._last is None:
            return
        self._remove_older(keep=0)
        self._last.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or gone
            self._last.parent.rmdir()

    def _remove_older(self, *, keep: int) -> None:
        """Remove what is older than the last version but for the newest `keep` whole ones.

        What a killed trainer has left goes too. A trainer that has replaced this one keeps its
        files.
        """
        assert self._last is not None
        last = _version_of(self._last)
        found = (f for f in self._last.parent.glob("*") if f.suffix in {".safetensors", _DRAFT})
        older = sorted((f for f in found if _version_of(f) < last), key=_version_of)
        whole = [file for file in older if file.suffix != _DRAFT]
        for file in set(older) - set(whole[len(whole) - keep :]):
            file.unlink(missing_ok=True)


class StagedFile(Staged):
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


def stage_file(path: Path, manifest: WeightManifest) -> StagedFile:
    """Open and verify a file. Call it in a thread: half a second per gigabyte and core.

    Args:
        path: Neither it nor its folder may be a symbolic link.
        manifest: Names, shapes, dtypes and digests of all its tensors.

    Raises:
        NotFoundError: There is no such file, or it is no plain file of this user.
        InvalidInputError: It is not safetensors, or not what the manifest says; the message names
            the tensor.
    """
    descriptor = open_plain(path)
    staged = StagedFile(descriptor)
    try:
        header, data = _read(descriptor)
        compare_header(header, manifest.tensors)
        compare_digests(tensor_digests(_tensors(header, data), manifest.algorithm), manifest)
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


def describe_file(path: Path, algorithm: DigestAlgorithm = ALGORITHM) -> dict[str, TensorEntry]:
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
    digests = tensor_digests(_tensors(header, data), algorithm)
    return {
        name: TensorEntry.model_validate(
            {"shape": span.shape, "dtype": span.dtype, "digest": digests[name]}
        )
        for name, span in header.items()
    }


def _read(descriptor: int) -> tuple[dict[str, TensorSpan], memoryview]:
    """A file's tensors by name, and all their bytes."""
    data = _mapped(descriptor)
    start = LENGTH_BYTES + header_length(data[:LENGTH_BYTES])
    if start > len(data):
        raise InvalidInputError("the file of weights is not safetensors: its header is cut short")
    return parse_header(bytes(data[LENGTH_BYTES:start]), len(data) - start), data[start:]


def _tensors(header: Mapping[str, TensorSpan], data: memoryview) -> dict[str, memoryview]:
    return {name: data[span.begin : span.end] for name, span in header.items()}


def _mapped(descriptor: int) -> memoryview:
    """The file's bytes; unmapped when the last slice of them is gone."""
    size = os.fstat(descriptor).st_size
    if size < LENGTH_BYTES:
        raise InvalidInputError("the file of weights is not safetensors: it is too short")
    return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))


def temporary_folder(run: str, part: str) -> Path:
    """A folder of this part of a run, this host and this user in `TMPDIR`, which hosts may share.

    Containers have host names of their own, and hosts that were given one name have kernels of
    their own.
    """
    kernel = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    name = f"sgg-{run}-{part}-{socket.gethostname()}-{kernel}-{os.geteuid()}"
    return Path(tempfile.gettempdir()) / name


def private_folder(path: Path) -> Path:
    """Make a folder that no other user of this host can write to, or check that it is one.

    Raises:
        SettingsError: Somebody else made it, or opened it for others.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not mine or status.st_mode & 0o022:
        raise SettingsError(
            f"{path} is not a folder that you alone can write to: remove it, or name the run anew"
        )
    return path


def _version_of(file: Path) -> Version:
    incarnation, _, policy_version = file.stem.partition("-")
    return Version(int(incarnation), int(policy_version))
