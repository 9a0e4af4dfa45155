"""The lines of a file of JSON rows, and what a glance at each shows, in one pass over the file."""

import re
from array import array
from typing import Any, BinaryIO

import msgspec
import numpy as np

from scene_data.reading.chats import image_of
from scene_data.reading.kept import Arrays
from scene_data.reading.rows import RowError

_EMPTY = (b"[]", b"null", b'"[]"')
_IMAGE_AND_OBJECTS = re.compile(
    rb'\s*\{[^{\[\\]*"image"\s*:\s*"[^"\\]+"[^{\[\\]*"objects"\s*:\s*\[\{'
)
_RELATIONSHIPS = b'"relationships": [{'
"""The usual row shows both, and is not decoded: that takes thrice as long."""


class _Glance(msgspec.Struct):
    """What is decoded of a row: this takes a tenth of the time of all of it."""

    image: Any = None
    images: Any = None
    objects: msgspec.Raw = msgspec.Raw()
    relationships: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Glance).decode


def find_lines(file: BinaryIO) -> Arrays:
    """The lines that are not blank.

    Args:
        file: At its start.

    Returns:
        `lines` [N, 3]: starts, ends and numbers (from 0). `names_image` [N]: whether the row names
        an image, or is wrong in how it does; False says nothing. `objects` and `relationships` [N]:
        whether the list is there and empty; False says nothing.
    """
    lines, seen, start = array("q"), bytearray(), 0
    for number, line in enumerate(file):
        if not line.isspace():
            lines.extend((start, start + len(line), number))
            seen.extend(_glance(line))
        start += len(line)
    named, objects, relationships = np.array(seen, dtype=bool).reshape(-1, 3).T
    return {
        "lines": np.asarray(lines).reshape(-1, 3),
        "names_image": named,
        "objects": objects,
        "relationships": relationships,
    }


def _glance(line: bytes) -> tuple[bool, bool, bool]:
    """What is said of a line in `names_image`, `objects` and `relationships`."""
    if _RELATIONSHIPS in line and _IMAGE_AND_OBJECTS.match(line):
        return True, False, False
    try:
        row = _decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False, False, False
    return _names_image(row), _is_empty(row.objects), _is_empty(row.relationships)


def _names_image(row: _Glance) -> bool:
    try:
        return bool(image_of({"image": row.image, "images": row.images}))
    except RowError:
        return True


def _is_empty(value: msgspec.Raw) -> bool:
    text = memoryview(value)
    return len(text) <= 4 and bytes(text) in _EMPTY
