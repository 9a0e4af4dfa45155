"""The versions that are kept: as they were sent, or with deltas applied to the last whole one."""

import asyncio
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from services.errors import InvalidInputError, NotFoundError, TooLargeError, UnavailableError
from services.schemas.weights import DeltaBase, StageRequest, Version
from services.waiting import in_thread
from weight_sync.delta.patching import Whole, is_delta, open_whole, patch
from weight_sync.digests import ALGORITHM, compare_digests
from weight_sync.file_format import MAX_HEADER_BYTES, TensorSpan, compare_header
from weight_sync.transports.files import StagedFile, delta_file, open_plain, stage_file
from weight_sync.transports.uploads.incoming import Body, receive_and_hash
from weight_sync.transports.uploads.spool import Spool, SpoolFile

_DRAFT = "upload.draft"
_BYTES_PER_ELEMENT = 4
"""Float32's, the largest type of a version."""
_LIMIT_IF_UNKNOWN_BYTES = 64 * 2**30
"""Most bytes of an upload for a model whose tensors the engine does not tell."""
_SILENT_S = 5.0
"""A sender reads a file and sends it: one that is silent for so long will hardly go on."""


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
            work = partial(receive_and_hash, body, file.pieces(body.num_bytes))
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
