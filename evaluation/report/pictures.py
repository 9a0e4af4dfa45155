"""Pictures small enough to stand inside the page."""

import base64
import io

from services.errors import InvalidInputError, TooLargeError
from services.images import decode_image

SIZES = ((640, 85), (640, 65), (480, 55))
"""Longest side in pixels and JPEG quality, tried in turn."""
MAX_BYTES = 110_000
"""Largest JPEG: 100 of them, in base64, are under 15 MB."""


def data_uri(data: bytes | None, size: tuple[int, int] | None = None) -> str | None:
    """A JPEG data URI of an encoded image, upright.

    Args:
        data: The file, if there is one.
        size: Width and height that its boxes are for; the picture may be larger or smaller.

    Returns:
        None where there is no image, or one of another shape: boxes would lie beside their objects.
    """
    if data is None:
        return None
    try:
        image = decode_image(data)
    except (InvalidInputError, TooLargeError):
        return None
    if size is not None and not _has_shape(image.size, size):
        return None
    jpeg = b""
    for side, quality in SIZES:
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        jpeg = buffer.getvalue()
        if len(jpeg) <= MAX_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _has_shape(found: tuple[int, int], said: tuple[int, int]) -> bool:
    """Whether sides are in the same proportion, to a pixel of rounding."""
    (width, height), (said_width, said_height) = found, said
    return abs(width * said_height - height * said_width) <= max(*found, *said)
