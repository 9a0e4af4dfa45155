"""What changed in a tensor from one version to the next: positions, and differences of bits.

No transport sends it yet.

A step at a small learning rate leaves most elements as they were in bfloat16 or float16, and moves
the others to a neighbour: with float32 masters an element changes when its master crosses the
middle between two neighbours. So a position is put as its distance from the one before, mostly one
byte, and a value as the difference of both values' bits, mostly 1 or -1. Both are deflated.

Bits are subtracted and added as unsigned integers that wrap around: what is applied is equal in
every bit, whatever the values are (NaNs, zeros with a sign, infinities).
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.errors import InvalidInputError

Bits = np.ndarray[tuple[int], np.dtype[Any]]
"""[n] elements of a tensor in row-major order: uint16 for bfloat16 and float16, uint32 for float32.
"""
_Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]

_MORE = 255
"""A byte of a distance that goes on: it counts 255 elements, of which none changed."""


@dataclass(frozen=True, slots=True)
class TensorDelta:
    """From one version's tensor to the next one's."""

    num_changed: int
    distances: bytes
    """Elements between one change and the next, deflated: a byte `_MORE` for each 255 of them, then
    a byte for the rest."""
    differences: bytes
    """New bits minus old ones, with the sign in the lowest bit: 2 d, or -2 d - 1 where d < 0. The
    lowest bytes of all, then the higher ones, deflated."""

    @property
    def num_bytes(self) -> int:
        """Bytes to send."""
        return len(self.distances) + len(self.differences)


def encode(base: Bits, new: Bits) -> TensorDelta:
    """What leads from `base` to `new`, both [n] and of one type. Elements are compared by bits.

    It takes some 40 bytes of memory for each changed element: give it a large tensor in slices.
    """
    places = np.flatnonzero(base != new)
    distances = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(distances // _MORE + 1) - 1
    line = np.full(ends[-1] + 1 if len(ends) else 0, _MORE, np.uint8)
    line[ends] = distances % _MORE
    bits = new[places] - base[places]
    return TensorDelta(
        num_changed=len(places),
        distances=_deflated(line),
        differences=_deflated(_planes(_sign_last(bits))),
    )


def apply(base: Bits, delta: TensorDelta) -> None:
    """Turn `base`, [n], into what `delta` was made for, in place.

    Whether that is the right tensor its digest says: a delta can be applied to any base.

    Raises:
        InvalidInputError: It is no delta of a tensor of that size and type; `base` is as it was.
    """
    if not 0 <= delta.num_changed <= len(base):
        raise InvalidInputError(f"it changes {delta.num_changed} of {len(base)} elements")
    line = _inflated(delta.distances, "distances", delta.num_changed + len(base) // _MORE)
    steps = line.astype(np.int64) + (line != _MORE)
    places = np.cumsum(steps)[line != _MORE] - 1
    is_whole = not line.size or line[-1] != _MORE
    if len(places) != delta.num_changed or not is_whole or np.any(places[-1:] >= len(base)):
        raise InvalidInputError("its distances do not fit the tensor")
    size = base.dtype.itemsize
    planes = _inflated(delta.differences, "differences", delta.num_changed * size)
    if len(planes) != delta.num_changed * size:
        raise InvalidInputError("its differences are not one for each change")
    base[places] += _sign_first(_from_planes(planes, base.dtype))


def _sign_last(bits: Bits) -> Bits:
    """0, -1, 1, -2, … as 0, 1, 2, 3, …: small numbers of either sign have zeros above."""
    sign = bits >> (8 * bits.dtype.itemsize - 1)
    return (bits << 1) ^ (0 - sign)


def _sign_first(bits: Bits) -> Bits:
    """The inverse of `_sign_last`."""
    return (bits >> 1) ^ (0 - (bits & 1))


def _planes(bits: Bits) -> _Bytes:
    little = bits.astype(bits.dtype.newbyteorder("<"))
    return np.ascontiguousarray(little.view(np.uint8).reshape(-1, bits.itemsize).T).reshape(-1)


def _from_planes(planes: _Bytes, dtype: np.dtype[Any]) -> Bits:
    little = np.ascontiguousarray(planes.reshape(dtype.itemsize, -1).T).view(
        dtype.newbyteorder("<")
    )
    return little.reshape(-1).astype(dtype)


def _deflated(data: _Bytes) -> bytes:
    # There is nothing but runs to find: as small as by level 6, in a quarter of the time.
    stream = zlib.compressobj(strategy=zlib.Z_RLE)
    return stream.compress(data.data) + stream.flush()


def _inflated(data: bytes, what: str, most: int) -> _Bytes:
    """No more than there can be of it: a few bytes may claim to be gigabytes."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise InvalidInputError(f"its {what} are not deflated: {error}") from error
    if len(found) > most or not stream.eof or stream.unused_data:
        raise InvalidInputError(f"its {what} are cut short, or more than there can be")
    return np.frombuffer(found, np.uint8)
