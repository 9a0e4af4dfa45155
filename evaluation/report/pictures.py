"""Pictures small enough to stand inside the page."""

from scene_graph.drawing.svg import data_uri as jpeg_uri
from scene_graph.drawing.svg import encode_jpeg
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
        jpeg = encode_jpeg(image, side, quality)
        if len(jpeg) <= MAX_BYTES:
            break
    return jpeg_uri(jpeg)


def _has_shape(found: tuple[int, int], said: tuple[int, int]) -> bool:
    """Whether sides are in the same proportion, to a pixel of rounding."""
    (width, height), (said_width, said_height) = found, said
    return abs(width * said_height - height * said_width) <= max(*found, *said)
