"""Pictures of a run: from its image store, or from the dataset's row."""

import hashlib
from functools import lru_cache

from pydantic import ValidationError

from console.groups.rules import Rules
from console.runs import Run
from scene_data.reading.images import image_bytes
from scene_data.reading.rows import RowError
from scene_data.reading.sources import Rows, open_rows
from scene_graph.drawing.svg import encode_jpeg
from services.errors import InvalidInputError, NotFoundError, SggError, TooLargeError
from services.images import ImageStore, decode_image
from services.schemas.common import ImageRef

LONGEST = 1024
"""Pixels of the longer side that a page gets at most"""
_QUALITY = 85
_NUM_TRIED = 8
"""Rows from a group's on: unusable ones before it, which its number does not count, shift it"""


def picture(run: Run, rules: Rules, sha256: str, row: int | None) -> bytes:
    """An upright JPEG of the picture with that digest.

    Args:
        run: The run.
        rules: The run's.
        sha256: Of the encoded file.
        row: Of the dataset, where it is known.

    Raises:
        NotFoundError: The picture is gone; says where it was looked for.
    """
    data = _from_store(run, sha256)
    if data is None and row is not None and rules.settings is not None:
        data = _from_dataset(rules.settings.data.train, sha256, row)
    if data is None:
        train = rules.settings.data.train if rules.settings else "the dataset"
        raise NotFoundError(
            f"this picture is gone: the run's image store keeps pictures only while they are "
            f"sampled, and {train} does not have it any more"
        )
    return as_jpeg(data)


def as_jpeg(data: bytes) -> bytes:
    """A picture as a page gets it: upright, and no larger than `LONGEST`.

    Raises:
        NotFoundError: It cannot be opened.
    """
    try:
        return encode_jpeg(decode_image(data), LONGEST, _QUALITY)
    except (InvalidInputError, TooLargeError) as error:
        raise NotFoundError(f"this picture cannot be shown: {error.message}") from error


def _from_store(run: Run, sha256: str) -> bytes | None:
    try:
        ref = ImageRef(sha256=sha256, num_bytes=1)
        return ImageStore(run.files.images).path(ref).read_bytes()
    except (OSError, ValidationError):
        return None


def _from_dataset(name: str, sha256: str, row: int) -> bytes | None:
    rows = _rows(name)
    if rows is None:
        return None
    try:
        for number in range(row, min(row + _NUM_TRIED, len(rows))):
            data = image_bytes(rows.row(number)["image"])
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
    except (RowError, KeyError, OSError):
        pass
    return None


@lru_cache(maxsize=8)
def _rows(name: str) -> Rows | None:
    """A dataset that cannot be opened now is not tried again."""
    try:
        return open_rows(name)
    except (SggError, OSError, ImportError):
        return None
