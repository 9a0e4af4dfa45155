"""Looks at JSON's brackets without parsing it: linear time, no recursion, safe on hostile text."""

import re

import numpy as np
from numpy.typing import NDArray

# A JSON string, also one that never ends. The alternatives exclude each other: no backtracking.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


def nesting_depth(data: bytes) -> int:
    """How deep arrays and objects are nested, as an upper bound where `data` is not JSON."""
    return int(_depths(data).max(initial=0))


def is_unfinished(data: bytes) -> bool:
    """Whether JSON text stops before its last bracket is closed."""
    depths = _depths(data)
    return bool(depths.size) and bool(depths[-1] > 0)


def _depths(data: bytes) -> NDArray[np.int64]:
    """[B] depth after each of the B brackets that are outside of strings."""
    brackets = np.frombuffer(_STRING.sub(b"", data).translate(None, _NOT_BRACKETS), dtype=np.uint8)
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    return np.cumsum(np.where(opens, 1, -1))
