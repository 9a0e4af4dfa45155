"""Versions that this server has files of its own of: sent to it, or made by deltas.

A file comes straight into its pages, and is hashed meanwhile. Deltas are applied to the last whole
one.
"""

import asyncio
import errno
import fcntl
import mmap
import os
import shutil
import signal
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from services.errors import (
    ClientGoneError,
    InvalidInputError,
    NoRoomError,
    NotFoundError,
    SettingsError,
    TooLargeError,
    UnavailableError,
)
from services.host.addresses import host_and_port
from services.schemas.weights import DeltaBase, StageRequest, Version, shown
from services.settings import Settings
from services.waiting import in_thread
from weight_sync.delta.patching import Whole, is_delta, open_whole, patch
from weight_sync.digests import ALGORITHM, Hash, compare_digests, new_hash
from weight_sync.file_format import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    TensorSpan,
    compare_header,
    header_length,
    parse_header,
)
from weight_sync.transports.files import (
    StagedFile,
    delta_file,
    open_plain,
    private_folder,
    stage_file,
    temporary_folder,
)

_DRAFT = "upload.draft"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The disk, the user's share of it, or the largest file that this process may write."""
_BYTES_PER_ELEMENT = 4
"""Float32's, the largest type of a version."""
_LIMIT_IF_UNKNOWN_BYTES = 64 * 2**30
"""Most bytes of an upload for a model whose tensors the engine does not tell."""
_SILENT_S = 5.0
"""A sender reads a file and sends it: one that is silent for so long will hardly go on."""
_PIECE_BYTES = 4 * 2**20
"""Received and hashed at once: much for a thread that waits for Python's global lock each
time, and little for a processor's cache."""


def spool_folder(settings: Settings) -> Path:
    """The same at each start, so that a killed process's leftovers are found; one for each host."""
    _, port = host_and_port(settings.rollout.url)
    return temporary_folder(settings.run.name, str(port))


class SpoolFile:
    """A file that is written through its memory, and again for a later version.

    A file's new pages cost more than the bytes that come into them. The pages of a version that is
    dropped stay mapped, and the next one gets them.
    """

    def __init__(self, path: Path) -> None:
        """A new file."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.descriptor = os.open(path, flags, 0o600)
        self.path = path
        self._memory: mmap.mmap | None = None

    def pieces(self, num_bytes: int) -> Iterator[memoryview]:
        """All its bytes, of which there are so many now, to be written in this order."""
        is_new = self._memory is None or len(self._memory) != num_bytes
        if is_new:
            self._memory = None
            os.ftruncate(self.descriptor, num_bytes)
            self._memory = mmap.mmap(self.descriptor, num_bytes) if num_bytes else None
        view = memoryview(self._memory or b"")
        for start in range(0, num_bytes, _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            if is_new:  # a write to a mapped page that has no room on the disk ends the process
                os.posix_fallocate(self.descriptor, start, len(piece))
            yield piece

    def is_shared(self) -> bool:
        """Whether somebody else may have it open: the kernel gives a lease of it to nobody then."""
        try:
            # Who opens it meanwhile has the kernel send a signal, and SIGIO would end the process.
            fcntl.fcntl(self.descriptor, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:  # also where the file system has no leases
            return True
        return False

    def rename(self, name: str) -> None:
        """Name it anew in its folder. Those that have an earlier file of that name open keep it."""
        self.path = self.path.rename(self.path.with_name(name))

    def remove(self) -> None:
        """Remove it; those that have it open keep it. Safe to call twice."""
        if self.descriptor >= 0:
            self.path.unlink(missing_ok=True)
            self.release()

    def release(self) -> None:
        """Close it, where another file has its name."""
        os.close(self.descriptor)
        self.descriptor, self._memory = -1, None


class Spool:
    """A private folder with one draft at a time, and the files that drafts became."""

    def __init__(self, settings: Settings) -> None:
        """Removes what a killed process left. The folder is made when something comes.

        Raises:
            SettingsError: Something that is not this user's is in its place.
        """
        self.folder = spool_folder(settings)
        if os.path.lexists(self.folder):
            try:
                shutil.rmtree(private_folder(self.folder))
            except OSError as error:
                raise SettingsError(
                    f"cannot remove {self.folder}, which an earlier process left: {error}"
                ) from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around what writes here.

        Raises:
            NoRoomError: The disk is full.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise NoRoomError(
                f"this server's spool folder {self.folder} has no room ({error.strerror}): free "
                "some, or start the server with TMPDIR on a larger disk; it takes three versions"
            ) from error

    def new_file(self, name: str, spare: SpoolFile | None = None) -> SpoolFile:
        """A file to be written, in place of an earlier one of that name.

        Args:
            name: The file's, in this folder.
            spare: One that is not needed any more. It is the new one if nobody has it open, else it
                is removed.
        """
        if spare is not None:
            with suppress(FileNotFoundError):  # a cleaner of temporary folders has been here
                spare.rename(name)  # first, so that nobody opens it from here on
                if not spare.is_shared():
                    return spare
            spare.remove()
        path = private_folder(self.folder) / name
        path.unlink(missing_ok=True)
        return SpoolFile(path)

    def new_folder(self, prefix: str) -> Path:
        """An empty folder, which the caller removes."""
        return Path(tempfile.mkdtemp(prefix=prefix, dir=private_folder(self.folder)))

    def remove(self) -> None:
        """Remove the folder. Safe to call twice."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Body(Protocol):
    """What is uploaded, for a thread to read. A connection's is `services.http.raw_body`."""

    num_bytes: int
    """What comes, if all goes well."""

    def __enter__(self) -> object:
        """Begin."""

    def __exit__(self, *_: Any) -> object:
        """Nothing more is read."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill a buffer, or the first part of it; 0 at the end. It blocks."""

    def stop(self) -> None:
        """Called from another thread: `readinto` ends with an error."""

    @property
    def silent_s(self) -> float:
        """Seconds since something came."""


@dataclass(slots=True)
class _Upload:
    """A complete file, with what was found while it came."""

    file: SpoolFile
    header: Mapping[str, TensorSpan]
    digests: Mapping[str, str]
    checksum: str | None = None
    """The manifest's that it was verified against."""
    delta: Path | None = None
    """What the version was made by, where that was sent here."""
    whole: Whole | None = None
    """The file, once deltas are applied to it."""

    @property
    def is_delta(self) -> bool:
        """Whether it is what a version changes."""
        return is_delta(self.header)

    def remove(self) -> None:
        """Remove its files."""
        self.drop_delta()
        self.file.remove()

    def drop_delta(self) -> None:
        """Remove what it was made by."""
        if self.delta is not None:
            self.delta.unlink(missing_ok=True)


class Found(NamedTuple):
    """A version's file."""

    path: Path
    is_delta: bool


Find = Callable[[Version], Found | None]


class _Links(NamedTuple):
    """How a version is made of what is here."""

    base: Version
    whole: Path
    deltas: list[Path]
    """To be applied in this order."""
    base_verified: bool = False
    """Whether the whole one is the last delta's base, by its own manifest."""


class Uploads:
    """Keeps the last upload while the next one comes; the bytes are hashed as they come."""

    def __init__(self, spool: Spool, num_elements: int | None) -> None:
        """Ready at once.

        Args:
            spool: Where uploads are kept.
            num_elements: The most that a version has; None where that is not known.
        """
        self.spool = spool
        self._limit_bytes = _LIMIT_IF_UNKNOWN_BYTES
        if num_elements is not None:
            self._limit_bytes = _BYTES_PER_ELEMENT * num_elements + MAX_HEADER_BYTES
        self._uploads: OrderedDict[Version, _Upload] = OrderedDict()
        self._turn = asyncio.Lock()
        self._coming: Body | None = None
        """Whose turn it is, or was."""

    async def receive(self, version: Version, body: Body) -> None:
        """Keep a file that is uploaded, in place of an earlier one of that version.

        An upload that has fallen silent makes way: its sender may have given it up long ago, or
        sits behind a dead line.

        Args:
            version: Without its checksum.
            body: The file's bytes.

        Raises:
            UnavailableError: Another upload is under way.
            TooLargeError: It is more than this model can need.
            InvalidInputError: It is no safetensors file, or not all of one.
            NoRoomError: The spool's disk is full.
            SggError: What `body` raises.
        """
        if body.num_bytes > self._limit_bytes:
            raise TooLargeError(
                f"the upload is over {self._limit_bytes} bytes, more than this model can need"
            )
        if self._turn.locked() and self._coming is not None:
            if self._coming.silent_s < _SILENT_S:
                raise UnavailableError("another upload is under way; try again when it is done")
            self._coming.stop()
        async with self._turn:
            self._coming = body
            with body, self.spool.writing():
                made = await self._receive(version, body)
                delta_file(made.file.path).unlink(missing_ok=True)
                self._keep(version, made)

    async def stage(self, request: StageRequest) -> StagedFile:
        """A verified upload. It is read again only where an earlier release made the digests.

        An upload is only replaced as a whole, so what was found while it came still holds.

        Raises:
            NotFoundError: There is none of that version, or none of what its delta is applied to.
            InvalidInputError: It is not what the manifest says.
        """
        manifest = request.manifest
        upload = self._uploads.get(manifest.version)
        if upload is None:
            raise NotFoundError(
                f"version {manifest.policy_version} was not uploaded here: PUT it to "
                f"/v1/weights/files/{manifest.incarnation}/{manifest.policy_version} first"
            )
        if manifest.delta is not None and upload.is_delta:
            return await self.patch(request, self._sent)
        if manifest.algorithm == ALGORITHM:
            compare_header(upload.header, manifest.tensors)
            compare_digests(upload.digests, manifest)
            staged = StagedFile(open_plain(upload.file.path))
        else:
            staged = await asyncio.to_thread(stage_file, upload.file.path, manifest)
        upload.checksum = request.checksum
        return staged

    async def patch(self, request: StageRequest, find: Find) -> StagedFile:
        """A version whose file is a delta: applied in place to the last one that is here whole.

        A server keeps one file for that, and where it is refused the file is as it was. What is
        staged is that same file: it has to be committed before the next version is staged, or it
        is replaced by that one.

        Args:
            request: With the manifest's `delta`.
            find: The file of a version of the chain, and whether it is a delta; None where there is
                none.

        Raises:
            NotFoundError: A version of the chain is missing.
            InvalidInputError: One is not usable, or the result is not what the manifest says.
        """
        version = request.manifest.version
        links = self._links(request, find)
        held = self._uploads.pop(links.base, None)
        for older in [v for v in self._uploads if held is None and v < links.base]:
            self._uploads.pop(older).remove()
        try:
            with self.spool.writing():
                made = await asyncio.to_thread(self._patched, request, links, held)
                self._name(version, made, links)
        except BaseException:
            if held is not None:
                self._uploads[links.base] = held
                self._uploads.move_to_end(links.base, last=False)
            raise
        self._keep(version, made)
        return StagedFile(open_plain(made.file.path))

    def _links(self, request: StageRequest, find: Find) -> _Links:
        """From the version back to the first that is whole, which is the nearest."""
        manifest = request.manifest
        assert manifest.delta is not None
        deltas: list[Path] = []
        for number in (manifest.policy_version, *reversed(manifest.delta.chain)):
            version = Version(manifest.incarnation, number)
            held = self._uploads.get(version)
            if held is not None and not held.is_delta:
                is_base = number == manifest.delta.chain[-1]
                verified = is_base and _is_verified(held, manifest.delta)
                return _Links(version, held.file.path, deltas, verified)
            found = find(version)
            if found is None:
                raise NotFoundError(
                    f"version {manifest.policy_version} is a delta, and version {number}, which it "
                    "is applied to, is not here: send this one whole"
                )
            if not found.is_delta:
                return _Links(version, found.path, deltas)
            deltas.insert(0, found.path)
        raise InvalidInputError(
            f"version {number} begins the chain of deltas, and is a delta itself: send version "
            f"{manifest.policy_version} whole"
        )

    def _patched(self, request: StageRequest, links: _Links, held: _Upload | None) -> _Upload:
        """This server's file of the base, with the version in it."""
        manifest = request.manifest
        own = held.file if held is not None else self.spool.new_file("base")
        try:
            with ExitStack() as stack:
                deltas = [_opened(stack, file) for file in links.deltas]
                if held is None:
                    whole = stack.enter_context(closing(StagedFile(open_plain(links.whole))))
                    shutil.copyfile(whole.path, own.path)
                mapped = (held and held.whole) or open_whole(own.path)
                digests = patch(mapped, deltas, manifest, base_verified=links.base_verified)
        except BaseException:
            if held is None:
                own.remove()
            raise
        if held is not None:
            held.drop_delta()
        return _Upload(own, mapped.header, digests, request.checksum, whole=mapped)

    def _name(self, version: Version, made: _Upload, links: _Links) -> None:
        """Give both files their names: on the event loop, as uploads get theirs, none between."""
        path = self.spool.folder / version.file_name
        if path in links.deltas:
            made.delta = path.rename(delta_file(path))
        made.file.rename(path.name)

    def _sent(self, version: Version) -> Found | None:
        upload = self._uploads.get(version)
        return None if upload is None else Found(upload.file.path, is_delta=upload.is_delta)

    def _keep(self, version: Version, upload: _Upload) -> None:
        """Under its name, in place of an earlier upload of that version."""
        replaced = self._uploads.pop(version, None)
        if replaced is not None:
            replaced.file.release()
        self._uploads[version] = upload

    def verified(self, checksum: str, *, whole: bool) -> tuple[Version, Path]:
        """What was verified against the manifest of that checksum, and where it lies.

        Args:
            checksum: The manifest's.
            whole: Whether the whole version is wanted, where a delta of it was sent here.

        Raises:
            NotFoundError: There is none.
        """
        for version, upload in self._uploads.items():
            if upload.checksum == checksum:
                path = upload.file.path
                return version, path if whole else upload.delta or path
        raise NotFoundError(
            "no version with that checksum was uploaded and staged here: it cannot be passed on"
        )

    async def _receive(self, version: Version, body: Body) -> _Upload:
        file = self.spool.new_file(_DRAFT, self._spare())
        try:
            work = partial(_receive_and_hash, body, file.pieces(body.num_bytes))
            header, digests = await in_thread(work, body.stop)
            file.rename(version.file_name)
        except BaseException:
            file.remove()
            raise
        return _Upload(file, header, digests)

    def _spare(self) -> SpoolFile | None:
        """The file of a version that is to go: there is room for two."""
        spare = None
        while len(self._uploads) > 1:
            if spare is not None:
                spare.remove()
            deltas = (version for version, upload in self._uploads.items() if upload.is_delta)
            dropped = self._uploads.pop(next(deltas, next(iter(self._uploads))))
            dropped.drop_delta()
            spare = dropped.file
        return spare

    def close(self) -> None:
        """Remove all of them, with the spool's folder."""
        for upload in self._uploads.values():
            upload.remove()
        self._uploads.clear()
        self.spool.remove()


def _receive_and_hash(
    body: Body, pieces: Iterable[memoryview]
) -> tuple[Mapping[str, TensorSpan], Mapping[str, str]]:
    """Fill a file with a body. One piece is hashed while the next one comes.

    Returns:
        The header, and each tensor's digest.
    """
    incoming = IncomingFile()
    with ThreadPoolExecutor(1) as beside:
        hashing: Future[None] | None = None
        for piece in pieces:
            _fill(piece, body)
            if hashing is not None:
                hashing.result()
            hashing = beside.submit(incoming.feed, piece)
        if hashing is not None:
            hashing.result()
    return incoming.finish()


def _fill(piece: memoryview, body: Body) -> None:
    while piece:
        size = body.readinto(piece)
        if size == 0:
            raise ClientGoneError("the body ended early: nothing of it is kept")
        piece = piece[size:]


def _opened(stack: ExitStack, file: Path) -> int:
    descriptor = open_plain(file)
    stack.callback(os.close, descriptor)
    return descriptor


def _is_verified(held: _Upload, delta: DeltaBase) -> bool:
    """Whether it is the delta's base; not known of one that was never staged."""
    if held.checksum not in (None, delta.checksum):
        raise InvalidInputError(
            f"the delta is for version {delta.chain[-1]} of checksum {delta.checksum}, and here is "
            f"one of {held.checksum}: send a whole version"
        )
    return held.checksum is not None


class IncomingFile:
    """Hashes a file's tensors as its bytes come, in pieces of any size: nothing is read again.

    Example: `file.feed(piece)` for each piece, then `header, digests = file.finish()`.
    """

    def __init__(self) -> None:
        self._prefix = bytearray()
        self._header: dict[str, TensorSpan] | None = None
        self._waiting: list[tuple[str, TensorSpan]] = []
        """Tensors that have not come yet, the next one last."""
        self._left = 0
        """Bytes of the present tensor that have not come yet."""
        self._hash: Hash | None = None
        self._digests: dict[str, str] = {}
        self._name = ""

    def feed(self, view: memoryview) -> None:
        """Hash the next bytes.

        Raises:
            InvalidInputError: This is no safetensors file, or it goes on after its last tensor.
        """
        if self._header is None:
            view = self._feed_header(view)
        while view:
            if self._left == 0:
                raise InvalidInputError("the file of weights goes on after its last tensor")
            part, view = view[: self._left], view[self._left :]
            assert self._hash is not None  # a tensor is on its way
            self._hash.update(part)
            self._left -= len(part)
            if self._left == 0:
                self._next_tensor()

    def finish(self) -> tuple[Mapping[str, TensorSpan], Mapping[str, str]]:
        """The header, and each tensor's digest.

        Raises:
            InvalidInputError: The file is not complete.
        """
        if self._header is None or self._left:
            where = shown(self._name) or "its header"
            raise InvalidInputError(f"the file of weights is cut short at {where}: send it again")
        return self._header, self._digests

    def _feed_header(self, view: memoryview) -> memoryview:
        """Returns what comes after it."""
        for size in (LENGTH_BYTES, None):
            size = size or LENGTH_BYTES + header_length(bytes(self._prefix[:LENGTH_BYTES]))
            missing = max(0, size - len(self._prefix))
            self._prefix += view[:missing]
            view = view[missing:]
            if len(self._prefix) < size:
                return view
        self._header = parse_header(bytes(self._prefix[LENGTH_BYTES:]))
        self._waiting = list(reversed(self._header.items()))
        self._next_tensor()
        return view

    def _next_tensor(self) -> None:
        """Note the present tensor's digest; go on with the next one that has bytes."""
        while self._left == 0:
            if self._hash is not None:
                self._digests[self._name] = self._hash.hexdigest()
            if not self._waiting:
                self._hash = None
                return
            self._name, span = self._waiting.pop()
            self._hash = new_hash()
            self._left = span.end - span.begin
