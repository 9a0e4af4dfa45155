"""Pictures small enough to stand inside the page."""

import base64
import io

from services.errors import InvalidInputError, TooLargeError
from services.images import decode_image

SIZES = ((640, 85), (640, 65), (480, 55))
"""Longest side in pixels and JPEG quality, tried in turn."""
MAX_BYTES = 110_000
"""Of a JPEG: 100 of them, in base64, are under 15 MB."""


def data_uri(data: bytes | None) -> str | None:
    """A JPEG data URI of an encoded image, upright; None where it is no image."""
    if data is None:
        return None
    try:
        image = decode_image(data)
    except (InvalidInputError, TooLargeError):
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
