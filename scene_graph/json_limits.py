"""Looks at JSON's brackets and commas without parsing: linear time, no recursion, little memory."""

from typing import NamedTuple

import numpy as np

_OTHERS = bytes(sorted(set(range(256)) - set(b'[]{},"')))
_BLOCK_BYTES = 1 << 20


class JsonShape(NamedTuple):
    """What stands outside of JSON's strings."""

    nesting: int
    """How deep arrays and objects are nested: at least as deep as a parser gets, even on errors."""
    unclosed: int
    """Arrays and objects that are open at the end."""
    num_commas: int
    """Each stands between two values of an array or an object."""


def json_shape(data: bytes) -> JsonShape:
    """The shape of JSON text, or of what is meant to be."""
    # Escaped backslashes go first: a quote after an even number of them does end its string.
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS)
    in_string = nesting = depth = num_commas = 0
    for start in range(0, len(plain), _BLOCK_BYTES):
        marks = np.frombuffer(plain[start : start + _BLOCK_BYTES], dtype=np.uint8)
        quotes = marks == ord('"')
        inside = (np.cumsum(quotes, dtype=np.uint8) + in_string) & 1
        in_string = int(inside[-1])
        outside = marks[(inside == 0) & ~quotes]
        brackets = outside[outside != ord(",")]
        num_commas += len(outside) - len(brackets)
        opens = (brackets == ord("[")) | (brackets == ord("{"))
        depths = np.cumsum(np.where(opens, 1, -1)) + depth
        nesting = max(nesting, int(depths.max(initial=0)))
        depth = int(depths[-1]) if len(depths) else depth
    return JsonShape(nesting, max(depth, 0), num_commas)
