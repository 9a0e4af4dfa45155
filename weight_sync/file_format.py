"""A version as one safetensors file, written and hashed tensor by tensor.

The layout is eight bytes of header length, a JSON header, then the tensors' bytes
(https://huggingface.co/docs/safetensors). The header stands first but is known last, so room is
kept for it and filled with spaces, which the format allows. That way no more than a few tensors are
in memory beside the file.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.errors import InvalidInputError, UnavailableError
from services.schemas.weights import TensorEntry
from services.waiting import RoomWait

HEADER_BYTES = 4 * 1024 * 1024
"""Room for the names and shapes of about 25,000 tensors."""
_THREADS = 4
"""Each hashes and writes one tensor at a time, outside Python's global lock."""
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def write_weights(
    file: Path, weights: Iterable[tuple[str, Tensor]], room: RoomWait, *, durable: bool = False
) -> dict[str, TensorEntry]:
    """Write a version; it appears under its name when it is complete.

    Args:
        file: In a folder that exists.
        weights: Names and CPU tensors, which may change once this has returned.
        room: Waits where the disk is full; it goes on where it was.
        durable: Whether the bytes must be on the disk before the name is.

    Returns:
        The manifest's tensors.

    Raises:
        UnavailableError: It cannot be written.
        WaitTimeoutError: There was no room for it for too long.
    """
    draft = file.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    try:
        entries = _write_draft(draft, weights, room, durable=durable)
        draft.rename(file)
        if durable:
            _sync_folder(file.parent)
    except OSError as error:
        raise UnavailableError(f"cannot write weights to {file}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
    return entries


def describe(tensor: Tensor, sha256: str | None = None) -> TensorEntry:
    """A tensor's entry in the manifest."""
    return TensorEntry.model_validate(
        {"shape": list(tensor.shape), "dtype": _dtype(tensor), "sha256": sha256}
    )


def _write_draft(
    draft: Path, weights: Iterable[tuple[str, Tensor]], room: RoomWait, *, durable: bool
) -> dict[str, TensorEntry]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = room.write(lambda: os.open(draft, flags, 0o600))
    try:
        entries = _write(descriptor, weights, room)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return entries


def _write(
    descriptor: int, weights: Iterable[tuple[str, Tensor]], room: RoomWait
) -> dict[str, TensorEntry]:
    header: dict[str, Any] = {}
    entries: dict[str, TensorEntry] = {}
    running: deque[tuple[str, Tensor, Future[str]]] = deque()
    offset = 0

    def finish_one() -> None:
        name, tensor, digest = running.popleft()
        entries[name] = describe(tensor, digest.result())

    with ThreadPoolExecutor(_THREADS) as pool:
        for name, tensor in weights:
            if len(running) == _THREADS:
                finish_one()
            start = 8 + HEADER_BYTES + offset
            written = pool.submit(_write_tensor, descriptor, tensor, start, room)
            running.append((name, tensor, written))
            size = tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _CODES.get(_dtype(tensor)),
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        while running:
            finish_one()
    _write_all(descriptor, memoryview(_header_bytes(header)), 0, room)
    return entries


def _write_tensor(descriptor: int, tensor: Tensor, start: int, room: RoomWait) -> str:
    """Write a tensor's bytes in row-major order; returns their sha256."""
    raw = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    _write_all(descriptor, raw, start, room)
    return hashlib.sha256(raw).hexdigest()


def _write_all(descriptor: int, raw: memoryview, start: int, room: RoomWait) -> None:
    while raw:  # the kernel takes at most 2 GiB at once, and what there is room for
        done = room.write(partial(os.pwrite, descriptor, raw, start))
        raw, start = raw[done:], start + done


def _header_bytes(header: dict[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > HEADER_BYTES:
        raise InvalidInputError(
            f"{len(header)} tensors: their names and shapes take {len(text)} bytes, over the "
            f"{HEADER_BYTES} that a file of weights keeps for them"
        )
    return HEADER_BYTES.to_bytes(8, "little") + text.ljust(HEADER_BYTES)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sync_folder(folder: Path) -> None:
    """Make the folder's list of names durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
