"""Good inputs, damaged: what a fuzzer hands to a parser."""

import json
from typing import Any

from hypothesis import strategies as st

_HUGE = [0, -1, 2**31, 2**53, 2**63, 2**64, 10**400, 1e308, -1e308, 1e-320]
_ODD_TEXTS = [
    "",
    "\x00",
    "\u2028",
    "\x1b[2J",
    "\ud83d\ude00",
    "a" * 5000,
    "../../etc/passwd",
    "NaN",
]
_ODD_BYTES = [b"\x00" * 9, b"\xff" * 9, b"[" * 300, b'{"a":' * 300, b",,", b"1e999", b"-", b'"']

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(_HUGE),
    st.sampled_from(_ODD_TEXTS),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
"""JSON of any shape, with NaN and numbers that JSON has not."""


@st.composite
def damaged_bytes(draw: st.DrawFn, good: bytes) -> bytes:
    """Some bytes flipped, cut out, repeated, put in or cut off, up to six times."""
    data = bytearray(good)
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(["flip", "cut", "repeat", "insert", "odd", "end"])):
            case "flip" if start < len(data):
                data[start] ^= draw(st.integers(1, 255))
            case "cut":
                del data[start : start + length]
            case "repeat":
                data[start:start] = data[start : start + length] * 3
            case "insert":
                data[start:start] = draw(st.binary(max_size=12))
            case "odd":
                data[start:start] = draw(st.sampled_from(_ODD_BYTES))
            case _ if draw(st.integers(0, 3)) == 0:
                del data[start:]
    return bytes(data)


@st.composite
def damaged_tree(draw: st.DrawFn, good: Any) -> Any:
    """JSON whose values are exchanged, taken out or added to in up to four places."""
    tree = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(0, 4))):
        tree = _changed(draw, tree)
    return tree


def _changed(draw: st.DrawFn, tree: Any) -> Any:
    if isinstance(tree, dict) and tree and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(tree)))
        if not draw(st.integers(0, 5)):
            return {name: value for name, value in tree.items() if name != key}
        return {**tree, key: _changed(draw, tree[key])}
    if isinstance(tree, list) and tree and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(tree) - 1))
        if not draw(st.integers(0, 5)):
            return tree[:place] + [tree[place]] * 3 + tree[place:]
        return [*tree[:place], _changed(draw, tree[place]), *tree[place + 1 :]]
    if isinstance(tree, dict) and not draw(st.integers(0, 3)):
        return {**tree, draw(st.text(max_size=8)): draw(trees)}
    return draw(trees)


def damaged_json(good: Any) -> st.SearchStrategy[bytes]:
    """The text of a damaged tree, or the damaged text of the good one."""
    text = json.dumps(good).encode()
    return damaged_bytes(text) | damaged_tree(good).map(lambda tree: json.dumps(tree).encode())
