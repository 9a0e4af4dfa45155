"""What the transports through a file have in common: where the file lies, and how it is staged.

It is opened safely, and verified before anything is loaded from it.
"""

import os
import socket
import stat
import tempfile
from abc import abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from services.errors import NotFoundError, SettingsError, UnavailableError
from services.schemas.weights import (
    TRANSPORTS,
    DeltaBase,
    DigestAlgorithm,
    TensorEntry,
    Version,
    WeightManifest,
)
from services.settings import Settings
from services.waiting import RoomWait
from weight_sync.digests import ALGORITHM, compare_digests, tensor_digest, tensor_digests
from weight_sync.engine import Staged
from weight_sync.file_format import (
    compare_header,
    read_file,
    tensor_bytes,
    write_bytes,
    write_weights,
)
from weight_sync.shards import Shard
from weight_sync.transports.sender import NamedTensors, Prepared, Sender, whole

if TYPE_CHECKING:  # the receiving ends do without torch
    from weight_sync.delta.last_version import LastVersion

_WHOLE, _DELTA = ".safetensors", ".delta"
_DRAFT = ".draft"
"""Ends the name of a version that is not all there."""


class FileSender(Sender):
    """Writes each version to a file, in a folder that holds nothing else.

    Room is needed for one version, and for a second where servers read the file themselves: one
    that starts while a version is written reads the version before. What is older goes first. A
    version of which a later one is a delta stays as long as that one.
    """

    durable: ClassVar[bool] = False
    """Whether the file is to outlive the machine."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._last: Path | None = None
        self._before: LastVersion | None = None
        """With deltas: the version before, to find what the next one changes."""
        if settings.weights.encoding == "delta":
            from weight_sync.delta import last_version

            self._before = last_version.LastVersion()

    @abstractmethod
    def file(self, version: Version) -> Path:
        """Where a whole version lies; a delta lies beside it (`delta_file`)."""

    def prepare(
        self, weights: NamedTensors, version: Version, base: DeltaBase | None = None
    ) -> Prepared:
        """See `Sender.prepare`. A full disk is waited for: `trainer.wait_timeout_s`.

        Of a `Shard` rank 0's tensors are written here; the version is prepared once those of the
        other ranks are too.

        Raises:
            WaitTimeoutError: It stayed full.
        """
        from weight_sync.transports.host import on_host

        self._last = self.file(version)
        shard = weights if isinstance(weights, Shard) else None
        room, weights = self._make_room(), on_host(weights)
        if self._before is None:
            return self._write_whole(weights, room, shard)
        if base is not None:
            found, weights = self._before.compare(weights)
            if found is not None:
                file, content = delta_file(self._last), found.content()
                write_bytes(file, content, room, durable=self.durable)
                base = base.model_copy(update={"digest": tensor_digest(memoryview(content))})
                return Prepared(found.entries, found.num_bytes, base, found.changed_share)
        return self._write_whole(self._before.keep(weights), room)

    def _write_whole(
        self, weights: NamedTensors, room: RoomWait, shard: Shard | None = None
    ) -> Prepared:
        assert self._last is not None
        return whole(write_weights(self._last, weights, room, durable=self.durable, shard=shard))

    def write_again(self, file: Path) -> None:
        """Write the last version whole, where it was sent as a delta and has no such file yet.

        Raises:
            UnavailableError: There is a later one meanwhile.
            WaitTimeoutError: There was no room.
        """
        if self._before is None or file.exists():
            return
        room = RoomWait(file.parent, self._settings.trainer.wait_timeout_s)
        write_weights(file, list(self._before.tensors.items()), room, durable=self.durable)
        if file != self._last:  # which has been written over these tensors
            file.unlink(missing_ok=True)
            raise UnavailableError(f"a later version came while {file.name} was written")

    def close(self) -> None:
        """See `Sender.close`."""
        if self._last is None:
            return
        self._remove_older(self._last, keep=0)
        for file in (self._last, delta_file(self._last)):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or gone
            self._last.parent.rmdir()

    def _make_room(self) -> RoomWait:
        assert self._last is not None
        folder = private_folder(self._last.parent)
        self._remove_older(self._last, keep=int(TRANSPORTS[self.name].servers_fetch))
        return RoomWait(folder, self._settings.trainer.wait_timeout_s)

    @staticmethod
    def _remove_older(last: Path, *, keep: int) -> None:
        """Remove what is older than the last version but for the newest `keep` whole ones.

        The deltas after these stay too. What a killed trainer has left goes. A trainer that has
        replaced this one keeps its files.
        """
        kinds = {_WHOLE, _DELTA, _DRAFT}
        found = (f for f in last.parent.glob("*") if f.suffix in kinds)
        older = sorted((f for f in found if _version_of(f) < _version_of(last)), key=_version_of)
        versions = [file for file in older if file.suffix != _DRAFT]
        starts = [i for i, file in enumerate(versions) if file.suffix == _WHOLE]
        first = starts[-keep:][0] if keep and starts else len(versions)
        for file in set(older) - set(versions[first:]):
            file.unlink(missing_ok=True)


def delta_file(whole_file: Path) -> Path:
    """Where a version lies that is a delta."""
    return whole_file.with_suffix(_DELTA)


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
        header, data = read_file(descriptor)
        compare_header(header, manifest.tensors)
        compare_digests(tensor_digests(tensor_bytes(header, data), manifest.algorithm), manifest)
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
        header, data = read_file(descriptor)
    finally:
        os.close(descriptor)
    digests = tensor_digests(tensor_bytes(header, data), algorithm)
    return {
        name: TensorEntry.model_validate(
            {"shape": span.shape, "dtype": span.dtype, "digest": digests[name]}
        )
        for name, span in header.items()
    }


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
