"""The server's end: a whole version's file becomes a later version, in place."""

import os
from collections.abc import Iterable, Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np

from services.errors import InvalidInputError
from services.schemas.weights import WeightManifest, shown
from weight_sync.delta.encoding import Bits, TensorDelta, apply, check
from weight_sync.digests import compare_digests, of_each, tensor_digest
from weight_sync.file_format import TensorSpan, compare_header, read_file, tensor_bytes
from weight_sync.mapped import copies_on_write, make_room

GAPS, VALUES = ":gaps", ":values"
"""A delta's file has these two for each tensor that changed, after its name."""
_BITS = {"float32": np.uint32, "bfloat16": np.uint16, "float16": np.uint16, "uint8": np.uint8}


def is_delta(header: Mapping[str, TensorSpan]) -> bool:
    """Whether a file with this header is a delta: a whole version has no tensor of bytes."""
    return not header or any(span.dtype == "uint8" for span in header.values())


class Whole(NamedTuple):
    """A whole version's file, mapped: what is changed of its bytes, the file has.

    Kept from one delta to the next, for each page that is mapped anew costs more than what is
    changed on it.
    """

    header: Mapping[str, TensorSpan]
    tensors: Mapping[str, memoryview]
    copies_on_write: bool


def open_whole(file: Path) -> Whole:
    """Map a file of this process's own.

    Raises:
        InvalidInputError: It is not safetensors.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        header, data = read_file(descriptor, writable=True)
        return Whole(header, tensor_bytes(header, data), copies_on_write(descriptor))
    finally:
        os.close(descriptor)


def patch(
    whole: Whole, deltas: Sequence[int], manifest: WeightManifest, *, base_verified: bool
) -> Mapping[str, str]:
    """Apply deltas to a whole version, in place. Call it in a thread.

    The result is read and digested, unless what it follows from has been: a base that is verified,
    and a delta with the digest that the manifest names.

    Args:
        whole: The version that the first delta is for.
        deltas: Their files', in the order of their versions.
        manifest: Of the last one's version.
        base_verified: Whether it is the manifest's base, by that one's own manifest.

    Returns:
        Each tensor's digest.

    Raises:
        InvalidInputError: A delta is not usable, or the result is not what the manifest says.
        OSError: The disk has no room (`make_room`). In both cases the file is as it was.
    """
    compare_header(whole.header, manifest.tensors)
    links = [_read(delta, whole.header) for delta in deltas]
    is_known = base_verified and _is_named(deltas[-1], manifest)
    undo: list[tuple[Bits, TensorDelta]] = []

    def change(name: str) -> str:
        raw = whole.tensors[name]
        bits = np.frombuffer(raw, _BITS[whole.header[name].dtype])
        changes = [link[name] for link in links if name in link]
        if changes and whole.copies_on_write:
            make_room(raw)
        for delta in changes:
            before = apply(bits, delta)
            undo.append((bits, before))
        known = manifest.tensors[name].digest if is_known else None
        return known or tensor_digest(raw, manifest.algorithm)

    try:
        digests = of_each(whole.tensors, change)
        compare_digests(digests, manifest)
    except BaseException:
        for bits, before in reversed(undo):  # those of one tensor in their order
            apply(bits, before)
        raise
    return digests


def _is_named(descriptor: int, manifest: WeightManifest) -> bool:
    """Whether the manifest has the digest of this delta's file.

    Raises:
        InvalidInputError: It has another.
    """
    if manifest.delta is None or manifest.delta.digest is None:
        return False
    with mmap(descriptor, 0, access=ACCESS_READ) as content:
        if tensor_digest(memoryview(content)) != manifest.delta.digest:
            raise InvalidInputError("the delta's digest is not the manifest's: send it again")
    return True


def _read(descriptor: int, whole: Mapping[str, TensorSpan]) -> dict[str, TensorDelta]:
    """What a delta changes, by the tensor's name; all of it fits a version with that header."""
    header, data = read_file(descriptor)
    if not is_delta(header):
        raise InvalidInputError("a whole version lies where the manifest says a delta does")
    parts = {
        name: np.frombuffer(part, _BITS[header[name].dtype])
        for name, part in tensor_bytes(header, data).items()
    }
    found = {}
    for name in _changed(header):
        try:
            if name not in whole or header[name + VALUES].dtype != whole[name].dtype:
                raise InvalidInputError("the version has no such tensor, or of another type")
            found[name] = TensorDelta(parts[name + GAPS], parts[name + VALUES])
            check(int(np.prod(whole[name].shape)), found[name])
        except InvalidInputError as error:
            raise InvalidInputError(f"{shown(name)}: {error.message}") from error
    return found


def _changed(header: Mapping[str, TensorSpan]) -> Iterable[str]:
    """The names of tensors, each of which has both parts and none else."""
    names = {name.rpartition(":")[0] for name in header}
    if header.keys() != {name + part for name in names for part in (GAPS, VALUES)} or any(
        (span.dtype == "uint8") != name.endswith(GAPS) for name, span in header.items()
    ):
        raise InvalidInputError("the delta does not have gaps and values of each tensor")
    return names
