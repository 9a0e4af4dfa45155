"""A file that comes: straight into its pages, and hashed meanwhile."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from services.errors import ClientGoneError, InvalidInputError
from services.schemas.weights import shown
from weight_sync.digests import Hash, new_hash
from weight_sync.file_format import LENGTH_BYTES, TensorSpan, header_length, parse_header


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


def receive_and_hash(
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
