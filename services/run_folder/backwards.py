"""Reads a long file of lines from its end, in blocks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

BLOCK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Block:
    """Some whole lines of a file, each with its end."""

    offset: int
    """Where the first byte stands."""
    text: bytes

    @property
    def num_lines(self) -> int:
        """How many they are."""
        return self.text.count(b"\n")

    def lines_backwards(self) -> Iterator[tuple[int, bytes]]:
        """Each with the offset of its first byte, without its end; the last one first."""
        lines = self.text.split(b"\n")[:-1]
        offsets = list(accumulate((len(line) + 1 for line in lines[:-1]), initial=self.offset))
        return zip(reversed(offsets), reversed(lines), strict=False)


def blocks_backwards(stream: BinaryIO, start: int, end: int) -> Iterator[Block]:
    """The whole lines between two offsets, the last ones first.

    A line that begins before `start` is none of them, nor what follows the last line's end: it is
    half written. Memory: a block and the longest line.
    """
    tail = b""
    while end > start:
        begin = max(start, end - BLOCK_BYTES)
        stream.seek(begin)
        text = stream.read(end - begin) + tail
        # What stands before the first line end belongs to a line of the block before this one.
        first = 0 if begin == 0 else text.find(b"\n") + 1
        whole, tail = text[first : text.rfind(b"\n") + 1], text[:first]
        if whole:
            yield Block(begin + first, whole)
        end = begin


def bisect_lines(stream: BinaryIO, size: int, is_after: Callable[[bytes], bool]) -> tuple[int, int]:
    """Two offsets, a block apart or less: `is_after` of no line before, of every line behind.

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
    return low, min(size, high + len(stream.readline()))
