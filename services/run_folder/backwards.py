"""Reads a long file of lines from its end, in blocks."""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import BinaryIO, NamedTuple

BLOCK_BYTES = 1 << 18


class Line(NamedTuple):
    """A whole line of a file."""

    offset: int
    """Of its first byte."""
    text: bytes
    """Without its end."""


def lines_backwards(stream: BinaryIO, end: int) -> Iterator[Line]:
    """The whole lines before `end`, the last one first.

    What follows the last line end before `end` is half written and passed over. Memory: a block and
    the longest line.
    """
    tail: bytes | None = None  # the beginning of the block before: the end of a line of this one
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        stream.seek(start)
        pieces = stream.read(end - start).split(b"\n")
        if tail is not None:
            pieces[-1] += tail
        elif len(pieces) > 1:
            pieces.pop()
        else:  # no line ends here
            end = start
            continue
        offsets = list(accumulate((len(piece) + 1 for piece in pieces[:-1]), initial=start))
        if start > 0:
            tail, pieces, offsets = pieces[0], pieces[1:], offsets[1:]
        yield from map(Line, reversed(offsets), reversed(pieces))
        end = start


def bisect_lines(stream: BinaryIO, size: int, is_after: Callable[[bytes], bool]) -> int:
    """An offset from which on `is_after` is true of every line, and false a block before it.

    Args:
        stream: Of lines in the order of what `is_after` looks at.
        size: Bytes of it to look at.
        is_after: True of all lines behind some place, and of none before it.
    """
    low, high = 0, size
    while high - low > BLOCK_BYTES:
        middle = (low + high) // 2
        stream.seek(middle)
        stream.readline(high - middle)  # the rest of a line
        line = stream.readline(high - middle)
        if not line or is_after(line):
            high = middle
        else:
            low = middle
    stream.seek(high)
    return min(size, high + len(stream.readline()))
