"""A curve's shape for the price of some lines, however long its file is."""

import json
import math
import os
from pathlib import Path
from typing import Any

_LONGEST_LINE = 64 << 10


def sampled_rows(file: Path, count: int) -> list[dict[str, Any]]:
    """About `count` rows of a file of JSON lines, evenly spread over its bytes, and the last one.

    Lines that are no JSON objects are passed over, such as one that is still being written.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size <= count * _LONGEST_LINE // 16:
                return _rows(stream.read())
            found: dict[int, bytes] = {}
            for i in range(count):
                stream.seek(size * i // count)
                if i:
                    stream.readline(_LONGEST_LINE)
                found[stream.tell()] = stream.readline(_LONGEST_LINE)
            stream.seek(max(0, size - _LONGEST_LINE))
            last = _rows(stream.read())[-1:]
            return _rows(b"\n".join(found[at] for at in sorted(found))) + last
    except OSError:
        return []


def finite(value: object) -> float | None:
    """A number, or None for what is none: a file may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _rows(text: bytes) -> list[dict[str, Any]]:
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
