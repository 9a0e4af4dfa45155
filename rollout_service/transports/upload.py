"""A safetensors file while it comes in: written down, and hashed tensor by tensor."""

import hashlib
import os
import threading
from collections.abc import Mapping
from typing import Any

from rollout_service.transports.safetensors_header import (
    LENGTH_BYTES,
    TensorSpan,
    header_length,
    parse_header,
    shown,
)
from services.errors import InvalidInputError


class IncomingFile:
    """Takes a file's bytes in pieces of any size, so that nothing has to be read again.

    Example: `file.feed(piece)` for each piece, then `header, digests = file.finish()`.
    """

    def __init__(self, descriptor: int) -> None:
        """Writes to an open file, until `close`."""
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._prefix = bytearray()
        self._header: dict[str, TensorSpan] | None = None
        self._waiting: list[tuple[str, TensorSpan]] = []
        """Tensors that have not come yet, the next one last."""
        self._left = 0
        """Bytes of the present tensor that have not come yet."""
        self._hash: Any = None
        self._digests: dict[str, str] = {}
        self._name = ""

    def feed(self, piece: bytes | bytearray) -> None:
        """Write and hash the next bytes; nothing after `close`. Call it in a thread.

        Raises:
            InvalidInputError: This is no safetensors file, or it goes on after its last tensor.
        """
        with self._lock:
            if self._descriptor >= 0:
                self._write(memoryview(piece))
                self._hash_tensors(memoryview(piece))

    def close(self) -> None:
        """Close the file, once the present piece is written."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def finish(self) -> tuple[Mapping[str, TensorSpan], Mapping[str, str]]:
        """The header, and each tensor's sha256.

        Raises:
            InvalidInputError: The file is not complete.
        """
        if self._header is None or self._left:
            where = shown(self._name) or "its header"
            raise InvalidInputError(f"the file of weights is cut short at {where}: send it again")
        return self._header, self._digests

    def _write(self, view: memoryview) -> None:
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _hash_tensors(self, view: memoryview) -> None:
        if self._header is None:
            view = self._feed_header(view)
        while view:
            if self._left == 0:
                raise InvalidInputError("the file of weights goes on after its last tensor")
            part, view = view[: self._left], view[self._left :]
            self._hash.update(part)
            self._left -= len(part)
            if self._left == 0:
                self._next_tensor()

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
            self._hash = hashlib.sha256()
            self._left = span.end - span.begin
