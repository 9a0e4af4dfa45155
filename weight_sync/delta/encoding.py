"""What changed in a tensor from one version to the next: gaps between changes, and new values.

A step at a small learning rate leaves most elements as they were in bfloat16 or float16: with
float32 masters an element changes when its master crosses the middle between two neighbours. So a
position is put as its distance from the one before, mostly one byte, beside the new element's two.
Nothing is compressed: at 1 % that is 1.5 % of the bytes, and deflating it would take longer than
finding it.

Elements are compared by bits: what is applied is equal in every bit, whatever the values are (NaNs,
zeros with a sign, infinities).
"""

from typing import Any, NamedTuple

import numpy as np

from services.errors import InvalidInputError

Bits = np.ndarray[tuple[int], np.dtype[Any]]
"""[n] elements of a tensor in row-major order: uint16 for bfloat16 and float16, uint32 for float32.
"""

_MORE = 255
"""A byte of a gap that goes on: it counts 255 elements, of which none changed."""
_SLICE = 2**20
"""Elements that are compared together: what is made of them stays in a cache,
and no tensor takes more memory for it than another."""
_SOME = 2**13
"""Bytes of gaps whose elements are changed together: each is on a line of memory of its own."""


class TensorDelta(NamedTuple):
    """From one version's tensor to the next one's."""

    gaps: np.ndarray[tuple[int], np.dtype[np.uint8]]
    """[m] unchanged elements before each changed one: a byte `_MORE` for each 255 of them, then a
    byte for the rest."""
    values: Bits
    """[k] new elements, in the order of their positions."""

    @property
    def num_bytes(self) -> int:
        """Bytes to send."""
        return self.gaps.nbytes + self.values.nbytes


def advance(base: Bits, new: Bits) -> TensorDelta:
    """Turn `base` into `new`, both [n] and of one type, in place; returns what leads there."""
    gaps, values = [np.empty(0, np.uint8)], [new[:0]]
    last = -1
    for start in range(0, len(new), _SLICE):
        before, after = (bits[start : start + _SLICE] for bits in (base, new))
        places = _places(before != after)
        if len(places):
            gaps.append(_gaps(np.diff(places, prepend=last - start) - 1))
            values.append(after[places])
            before[places] = values[-1]
            last = start + int(places[-1])
    return TensorDelta(np.concatenate(gaps), np.concatenate(values))


def check(num_elements: int, delta: TensorDelta) -> None:
    """Refuse what is no delta of a tensor of that many elements.

    Raises:
        InvalidInputError: Its gaps lead out of the tensor, or there is not one value for each.
    """
    ends = delta.gaps != _MORE
    num_changed = int(np.count_nonzero(ends))
    if num_changed != len(delta.values):
        raise InvalidInputError(
            f"the delta has {len(delta.values)} values for {num_changed} positions"
        )
    last = int(delta.gaps.sum(dtype=np.int64)) + num_changed - 1
    if last >= num_elements or not ends[-1:].all():
        raise InvalidInputError("the delta's positions lead out of the tensor")


def apply(base: Bits, delta: TensorDelta) -> TensorDelta:
    """Turn `base`, [n], into what a checked delta was made for, in place; returns the way back.

    Whether that is the right tensor its digest says: a delta can be applied to any base.
    """
    old = np.empty_like(delta.values)
    first, done = 0, 0
    for start in range(0, len(delta.gaps), _SOME):
        gaps = delta.gaps[start : start + _SOME]
        ends = gaps != _MORE
        reached = np.cumsum(gaps + ends, dtype=np.int64) + first
        places = reached[ends] - 1
        now = slice(done, done + len(places))
        old[now] = base[places]
        base[places] = delta.values[now]
        first, done = int(reached[-1]), now.stop
    return TensorDelta(delta.gaps, old)


def _places(changed: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> np.ndarray[Any, Any]:
    """Where it is true. Most is not, and is passed over eight elements at a time."""
    end = len(changed) // 8 * 8
    eights = changed[:end].view(np.uint64)
    some = np.flatnonzero(eights != 0)
    within = np.flatnonzero(eights[some].view(np.bool_))
    places = (some[within >> 3] << 3) + (within & 7)
    return np.concatenate([places, end + np.flatnonzero(changed[end:])])


def _gaps(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[Any, Any]:
    gaps = counts.astype(np.uint8)
    long = np.flatnonzero(counts >= _MORE)
    if not len(long):
        return gaps
    more = counts[long] // _MORE
    gaps[long] = counts[long] - _MORE * more
    return np.insert(gaps, np.repeat(long, more), _MORE)
