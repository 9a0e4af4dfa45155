"""The safetensors format of a version's file: written and hashed tensor by tensor, and read safely.

The layout is eight bytes of header length, a JSON header, then the tensors' bytes
(https://huggingface.co/docs/safetensors).

Written: the header stands first but is known last, so room is kept for it and filled with spaces,
which the format allows. That way no more than a few tensors are in memory beside the file.

Read: the header may come from anybody. This is stricter than the format where readers differ, so
that what is verified here is what vLLM loads: no name comes twice, numbers are plain integers, and
tensors follow one another without gap or overlap up to the end of the file.
"""

import json
import math
import mmap
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from services.errors import InvalidInputError, UnavailableError
from services.host.sync import sync
from services.schemas.weights import MAX_DIMENSION, MAX_RANK, TensorEntry, shown
from services.waiting import RoomWait
from weight_sync.digests import tensor_digest
from weight_sync.shards import Shard

if TYPE_CHECKING:
    from torch import Tensor

LENGTH_BYTES = 8
HEADER_BYTES = 4 * 1024 * 1024
"""Room for the names and shapes of about 25,000 tensors, in a file that is written here."""
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_THREADS = 4
"""Each hashes and writes one tensor at a time, outside Python's global lock."""
_DTYPES = {
    "F32": ("float32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "U8": ("uint8", 1),  # in a delta alone: no manifest has a tensor of this type
}
_CODES = {dtype: code for code, (dtype, _) in _DTYPES.items()}
_MAX_TENSORS = 200_000
_MAX_COMMAS = _MAX_TENSORS * (MAX_RANK + 4)
_KEYS = frozenset({"dtype", "shape", "data_offsets"})


def write_weights(
    file: Path,
    weights: "Iterable[tuple[str, Tensor]]",
    room: RoomWait,
    *,
    durable: bool = False,
    shard: Shard | None = None,
) -> dict[str, TensorEntry]:
    """Write a version; it appears under its name when it is complete.

    Args:
        file: In a folder that exists, or that can be made.
        weights: Names and CPU tensors, which may change once this has returned.
        room: Waits where the disk is full; it goes on where it was.
        durable: Whether the bytes must be on the disk before the name is.
        shard: Where other ranks write a part (`write_part`): what is known of the whole version.

    Returns:
        The manifest's tensors.

    Raises:
        UnavailableError: It cannot be written, here or by another rank.
        WaitTimeoutError: There was no room for it for too long.
    """
    with _draft(file, room, durable=durable) as descriptor:
        if shard is not None:
            # At its full size: a client of NFS that makes a file longer fills its last page with
            # zeros, where another one may have written already.
            os.ftruncate(descriptor, LENGTH_BYTES + HEADER_BYTES + shard.num_bytes)
            shard.draft.set_result(_draft_of(file))
        header, entries = _write(descriptor, weights, room)
        if shard is not None:
            entries |= shard.entries_of_others()
        if missing := [name for name, entry in entries.items() if entry.digest is None]:
            raise UnavailableError(f"no rank has written {shown(missing[0])}")
        _write_all(descriptor, memoryview(_header_bytes(header)), 0, room)
        return entries


def write_part(
    draft: Path, weights: "Iterable[tuple[str, Tensor]]", room: RoomWait, *, durable: bool
) -> dict[str, TensorEntry]:
    """Write this rank's tensors into the draft that rank 0 has made in `write_weights`.

    Args:
        draft: Its path.
        weights: As a `Shard` has them, on the CPU or the `meta` device.
        room: Waits where the disk is full.
        durable: Whether the bytes must be on the disk, where rank 0 cannot see to that.

    Returns:
        The entries of this rank's tensors.

    Raises:
        UnavailableError: It cannot be written.
        WaitTimeoutError: There was no room for too long.
    """
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            _, entries = _write(descriptor, weights, room)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UnavailableError(f"cannot write weights to {draft}: {error.strerror}") from error
    return {name: entry for name, entry in entries.items() if entry.digest is not None}


def write_bytes(file: Path, content: bytes, room: RoomWait, *, durable: bool = False) -> None:
    """Write a file whose bytes are known, as `write_weights` does."""
    with _draft(file, room, durable=durable) as descriptor:
        _write_all(descriptor, memoryview(content), 0, room)


def _new(file: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(file, flags, 0o600)
    except FileNotFoundError:  # another trainer of this host has ended, and took the empty folder
        file.parent.mkdir(mode=0o700, exist_ok=True)
        return os.open(file, flags, 0o600)


def _draft_of(file: Path) -> Path:
    return file.with_suffix(".draft")


@contextmanager
def _draft(file: Path, room: RoomWait, *, durable: bool) -> Iterator[int]:
    """A descriptor to write with; the file has its name once the block is left."""
    draft = _draft_of(file)
    draft.unlink(missing_ok=True)
    try:
        descriptor = room.write(lambda: _new(draft))
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        if durable:
            sync(draft)
        draft.rename(file)
        if durable:
            sync(file.parent)
    except OSError as error:
        raise UnavailableError(f"cannot write weights to {file}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def raw_bytes(tensor: "Tensor") -> memoryview:
    """A CPU tensor's bytes in row-major order: its own where they lie so."""
    import torch

    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def num_bytes(entries: Iterable[TensorEntry]) -> int:
    """Bytes of tensors together."""
    sizes = dict(_DTYPES.values())
    return sum(math.prod(entry.shape) * sizes[entry.dtype] for entry in entries)


def describe(tensor: "Tensor", digest: str | None = None) -> TensorEntry:
    """A tensor's entry in the manifest."""
    return TensorEntry.model_validate(
        {"shape": list(tensor.shape), "dtype": _dtype(tensor), "digest": digest}
    )


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """A tensor as a file's header describes it; `begin` and `end` count from the header's end."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


def read_file(
    descriptor: int, *, writable: bool = False
) -> tuple[dict[str, TensorSpan], memoryview]:
    """A file's tensors by name, and all their bytes; what is changed of these, the file has.

    They are unmapped when the last slice of them is gone.

    Raises:
        InvalidInputError: It is not safetensors.
    """
    size = os.fstat(descriptor).st_size
    if size < LENGTH_BYTES:
        raise _unusable("it is too short")
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    data = memoryview(mmap.mmap(descriptor, size, access=access))
    start = LENGTH_BYTES + header_length(data[:LENGTH_BYTES])
    if start > len(data):
        raise _unusable("its header is cut short")
    return parse_header(bytes(data[LENGTH_BYTES:start]), len(data) - start), data[start:]


def tensor_bytes(header: Mapping[str, TensorSpan], data: memoryview) -> dict[str, memoryview]:
    """Each tensor's bytes, of what `read_file` gives."""
    return {name: data[span.begin : span.end] for name, span in header.items()}


def header_length(prefix: bytes | memoryview) -> int:
    """Bytes of the JSON header, of the file's first eight bytes.

    Raises:
        InvalidInputError: It is over `MAX_HEADER_BYTES`.
    """
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES or length > MAX_HEADER_BYTES:
        raise _unusable(f"its header is over {MAX_HEADER_BYTES} bytes")
    return length


def parse_header(text: bytes, num_bytes: int | None = None) -> dict[str, TensorSpan]:
    """Tensors by name, in the order of their bytes.

    Args:
        text: The JSON header.
        num_bytes: Bytes of the tensors that follow it; None where they are not there yet.

    Raises:
        InvalidInputError: It is no header, or its tensors do not fill the file; the message names
            the tensor.
    """
    header = _decode(text)
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, Mapping) or not all(isinstance(v, str) for v in notes.values()):
        raise _unusable("its __metadata__ is not text by name")
    found = {name: _span(name, entry) for name, entry in header.items()}
    spans = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = 0
    for name, span in spans.items():
        if span.begin != end:
            raise InvalidInputError(f"{shown(name)}: the file's offsets are wrong")
        end = span.end
        if num_bytes is not None and end > num_bytes:
            raise InvalidInputError(
                f"{shown(name)}: the file is cut short or its offsets are wrong"
            )
    if num_bytes is not None and end < num_bytes:
        raise InvalidInputError("the file of weights goes on after its last tensor")
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
            f"{len(differing)} tensors differ; {shown(differing[0])} is not in the {where}"
        )
    for name, entry in expected.items():
        found = header[name]
        if (found.dtype, found.shape) != (entry.dtype, entry.shape):
            raise InvalidInputError(
                f"{shown(name)} is {found.dtype} {found.shape}; "
                f"the manifest says {entry.dtype} {entry.shape}"
            )


def _write(
    descriptor: int, weights: "Iterable[tuple[str, Tensor]]", room: RoomWait
) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    """Write what is not on the `meta` device; returns all tensors' header and entries."""
    header: dict[str, Any] = {}
    entries: dict[str, TensorEntry] = {}
    running: deque[tuple[str, Future[TensorEntry]]] = deque()
    offset = 0

    def finish_one() -> None:
        name, entry = running.popleft()
        entries[name] = entry.result()

    with ThreadPoolExecutor(_THREADS) as pool:
        for name, tensor in weights:
            if len(running) == _THREADS:
                finish_one()
            entries[name] = describe(tensor)  # in the order of the file
            if not tensor.is_meta:
                start = LENGTH_BYTES + HEADER_BYTES + offset
                written = pool.submit(_write_tensor, descriptor, tensor, start, room)
                running.append((name, written))
            size = tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _CODES.get(_dtype(tensor)),
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        while running:
            finish_one()
    return header, entries


def _write_tensor(descriptor: int, tensor: "Tensor", start: int, room: RoomWait) -> TensorEntry:
    """Write a tensor's bytes in row-major order."""
    raw = raw_bytes(tensor)
    _write_all(descriptor, raw, start, room)
    return describe(tensor, tensor_digest(raw))


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
    return HEADER_BYTES.to_bytes(LENGTH_BYTES, "little") + text.ljust(HEADER_BYTES)


def _dtype(tensor: "Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _decode(text: bytes) -> dict[str, Any]:
    """The JSON object, without building what no header needs."""
    if not text.startswith(b"{"):
        raise _unusable("no JSON object")
    # An entry has one object and two lists. Wide JSON would take many times its size in memory.
    num_objects, num_lists = text.count(b"{") - 2, text.count(b"[")
    if max(num_objects, num_lists / 2) > _MAX_TENSORS or text.count(b",") > _MAX_COMMAS:
        raise _unusable(f"it has more than {_MAX_TENSORS} tensors")
    try:
        header: dict[str, Any] = json.loads(
            text.decode(),  # UTF-8, and no other encoding that json would guess
            object_pairs_hook=_without_repeats,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as error:
        raise _unusable("no JSON header") from error
    return header


def _span(name: str, entry: Any) -> TensorSpan:
    """Sizes are checked before they are multiplied: a product of any numbers has no bound."""
    if not isinstance(entry, Mapping) or entry.keys() != _KEYS:
        raise InvalidInputError(f"{shown(name)}: the file's entry is not usable")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise InvalidInputError(
            f"{shown(name)}: the file's dtype is not one of {', '.join(_DTYPES)}"
        )
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise InvalidInputError(
            f"{shown(name)}: the file's shape is not at most {MAX_RANK} integers from 0 to "
            f"{MAX_DIMENSION}"
        )
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise InvalidInputError(f"{shown(name)}: the file's offsets are wrong")
    dtype, size = _DTYPES[code]
    begin, end = offsets
    if end - begin != size * math.prod(shape):
        raise InvalidInputError(f"{shown(name)}: the file is cut short or its offsets are wrong")
    return TensorSpan(dtype, shape, begin, end)


def _are_sizes(found: Any) -> bool:
    """A list of integers in range; True and False are none, though Python takes them for some."""
    return isinstance(found, list) and all(
        type(n) is int and 0 <= n <= MAX_DIMENSION for n in found
    )


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two entries counted would be the reader's choice: vLLM's may be another."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no integer")


def _unusable(why: str) -> InvalidInputError:
    return InvalidInputError(f"the file of weights is not safetensors: {why}")
