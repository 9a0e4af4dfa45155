"""Image files: found by name, and checked to their last pixel."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

from scene_data.rows import RowError

_USUAL = ("", "VG_100K", "VG_100K_2", "images")
"""Folders inside the one that a person names: Visual Genome comes as two of them"""


def find_image(name: str, folders: Sequence[Path]) -> Path:
    """The file of that name in one of the folders, or in a usual one inside.

    Raises:
        RowError: It is in none of them.
    """
    for folder in folders:
        for inside in _USUAL:
            if (file := folder / inside / name).is_file():
                return file
    raise RowError(
        f"no image {name} in {', '.join(map(str, folders))}", "its image is in none of the folders"
    )


def image_size(data: bytes, *, all_pixels: bool = True) -> tuple[int, int]:
    """Width and height of an encoded image.

    Args:
        data: The file.
        all_pixels: Decode it to its end, which finds damage behind the header.

    Raises:
        RowError: It cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
            if all_pixels:
                image.draft("L", (1, 1))  # JPEG: every byte is read, at an eighth of the pixels
                image.load()
    # What Pillow's decoders raise about damaged files.
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise RowError(f"image is not readable: {error}") from error
    return size
