"""Pictures with an EXIF orientation, stored so that they are upright once it is applied."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

Pixels = NDArray[np.uint8]
ORIENTATIONS = range(1, 9)
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{}"/></x:xmpmeta>'


def stored(upright: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels as a camera that is held so writes them: the table of EXIF 2.3, section 4.6.4."""
    ways = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }
    return np.ascontiguousarray(ways[orientation])


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags.tobytes()


def tagged(upright: NDArray[Any], orientation: int, kind: str = "PNG") -> bytes:
    """A file of `upright` as RGB; only JPEG loses something."""
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    return encoded(
        Image.fromarray(stored(upright, orientation)),
        kind,
        exif=exif(orientation),
        **options | ({"lossless": True} if kind == "WEBP" else {}),
    )


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + check


def with_chunk(png: bytes, name: bytes, body: bytes, *, late: bool = False) -> bytes:
    """A PNG with one more chunk behind its header, or behind its pixels."""
    place = len(png) - 12 if late else 33
    return png[:place] + chunk(name, body) + png[place:]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no data."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Random pixels, [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
