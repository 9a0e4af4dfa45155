"""`http`: the file is uploaded to this server, for hosts that share nothing."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rollout_service.transports.base import Transport
from rollout_service.transports.safetensors_file import (
    StagedFile,
    compare_digests,
    compare_header,
    open_plain,
)
from rollout_service.transports.safetensors_header import MAX_HEADER_BYTES, TensorSpan
from rollout_service.transports.spool import Spool
from rollout_service.transports.upload import IncomingFile
from services.errors import NotFoundError, TooLargeError, UnavailableError, WaitTimeoutError
from services.schemas.weights import StageRequest

_BYTES_PER_ELEMENT = 4
"""Of float32, the largest type of a version."""
_LIMIT_IF_UNKNOWN_BYTES = 64 * 2**30
"""Of an upload for a model whose tensors the engine does not tell."""
_PIECE_BYTES = 8 * 2**20
"""Handed to a thread at once."""
_SILENCE_S = 60.0
"""A client that sends nothing for this long is given up."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A complete file, with what was found while it came."""

    path: Path
    header: Mapping[str, TensorSpan]
    digests: Mapping[str, str]


class HttpTransport(Transport):
    """Keeps the last upload while the next one comes; the bytes are hashed as they come."""

    def __init__(self, spool: Spool, num_elements: int | None) -> None:
        """Ready at once.

        Args:
            spool: Where uploads are kept.
            num_elements: That a version has at most; None where that is not known.
        """
        self._spool = spool
        self._limit_bytes = _LIMIT_IF_UNKNOWN_BYTES
        if num_elements is not None:
            self._limit_bytes = _BYTES_PER_ELEMENT * num_elements + MAX_HEADER_BYTES
        self._uploads: OrderedDict[tuple[int, int], Upload] = OrderedDict()
        self._busy = False

    def check_size(self, num_bytes: int) -> None:
        """Refuse an upload of that size.

        Raises:
            TooLargeError: It is more than this model can need.
        """
        if num_bytes > self._limit_bytes:
            raise TooLargeError(
                f"the upload is over {self._limit_bytes} bytes, more than this model can need"
            )

    async def receive(
        self, incarnation: int, policy_version: int, chunks: AsyncIterator[bytes]
    ) -> None:
        """Keep a file that is uploaded, in place of an earlier one of that version.

        Raises:
            UnavailableError: Another upload is under way.
            TooLargeError: It is more than this model can need.
            InvalidInputError: It is no safetensors file, or not all of one.
            WaitTimeoutError: The client fell silent.
            NoRoomError: The spool's disk is full.
        """
        if self._busy:
            raise UnavailableError("another upload is under way; try again when it is done")
        self._busy = True
        while len(self._uploads) > 1:  # first: there is room for two versions
            self._uploads.popitem(last=False)[1].path.unlink(missing_ok=True)
        try:
            with self._spool.writing():
                header, digests = await self._write_draft(chunks)
                path = self._spool.keep_draft(f"{incarnation}-{policy_version}.safetensors")
            key = (incarnation, policy_version)
            self._uploads[key] = Upload(path, header, digests)
            self._uploads.move_to_end(key)
        finally:
            self._busy = False
            self._spool.drop_draft()

    async def stage(self, request: StageRequest) -> StagedFile:
        """See `Transport.stage`. Nothing is read again: an upload is only replaced as a whole."""
        manifest = request.manifest
        upload = self._uploads.get((manifest.incarnation, manifest.policy_version))
        if upload is None:
            raise NotFoundError(
                f"version {manifest.policy_version} was not uploaded here: PUT it to "
                f"/v1/weights/files/{manifest.incarnation}/{manifest.policy_version} first"
            )
        compare_header(upload.header, manifest.tensors)
        compare_digests(upload.digests, manifest.tensors)
        return StagedFile(open_plain(upload.path))

    async def _write_draft(
        self, chunks: AsyncIterator[bytes]
    ) -> tuple[Mapping[str, TensorSpan], Mapping[str, str]]:
        """Write and hash one piece while the next one comes."""
        incoming = IncomingFile(self._spool.open_draft())
        feeding: asyncio.Task[None] | None = None
        try:
            async for piece in self._pieces(chunks):
                if feeding is not None:
                    await feeding
                feeding = asyncio.create_task(asyncio.to_thread(incoming.feed, piece))
            if feeding is not None:
                await feeding
            return incoming.finish()
        finally:
            incoming.close()

    async def _pieces(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytearray]:
        """Chunks of the network, put together to `_PIECE_BYTES`."""
        size, piece = 0, bytearray()
        while (chunk := await _next(chunks)) is not None:
            size += len(chunk)
            self.check_size(size)
            piece += chunk
            if len(piece) >= _PIECE_BYTES:
                yield piece
                piece = bytearray()
        yield piece


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    """The next chunk; None at the end."""
    try:
        async with asyncio.timeout(_SILENCE_S):
            return await anext(chunks, None)
    except TimeoutError as error:
        raise WaitTimeoutError(f"the upload was silent for {_SILENCE_S:g} s") from error
