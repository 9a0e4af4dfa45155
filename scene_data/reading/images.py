"""Image files: found by name, read, and held against what their rows say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scene_data.reading.rows import RowError
from services.errors import InvalidInputError, TooLargeError
from services.images import MAX_IMAGE_BYTES, ImageHeader, decode_image, image_header

_USUAL = ("", "VG_100K", "VG_100K_2", "images")
"""Folders inside the one that a person names: Visual Genome comes as two of them"""


def find_image(name: str, folders: Sequence[Path]) -> Path:
    """The file of that name in one of the folders, or in a usual one inside.

    Raises:
        RowError: It is in none of them.
    """
    try:
        for folder in folders:
            for inside in _USUAL:
                if (file := folder / inside / name).is_file():
                    return file
    except OSError as error:  # a name too long for a file
        raise RowError(f"image cannot be read: {error}") from error
    raise RowError(
        f"no image {name} in {', '.join(map(str, folders))}", "its image is in none of the folders"
    )


def image_bytes(image: Any) -> bytes:
    """The encoded file of a row's image: bytes, a path, or a mapping with `bytes` or `path`.

    Raises:
        RowError: There is none, or it cannot be read.
    """
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if not image:
        raise RowError("no image")
    try:
        with Path(image).open("rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)  # one byte too many is refused like all the rest
    except OSError as error:
        raise RowError(f"image cannot be read: {error.strerror or error}: {image}") from error
    except (TypeError, ValueError) as error:  # no path, or one with a null byte
        raise RowError(f"image cannot be read: {error}") from error


def check_image(
    data: bytes, said: tuple[int, int] | None, *, all_pixels: bool = False
) -> ImageHeader:
    """Hold an encoded image against the rule for pictures, and against its row.

    Args:
        data: The file.
        said: Width and height that its row says, if it does.
        all_pixels: Decode it to its end, which finds damage behind the header.

    Returns:
        Its size as every part of the system sees it: upright.

    Raises:
        RowError: Rollout servers and trainer would refuse it, or the row says another size.
    """
    try:
        header = image_header(data)
        if all_pixels:
            decode_image(data)
    except (InvalidInputError, TooLargeError) as error:
        raise RowError(error.message) from error
    if said is not None and said != header.size:
        raise _other_size(header, said)
    return header


def _other_size(header: ImageHeader, said: tuple[int, int]) -> RowError:
    has = "image has {}x{} pixels".format(*header.size)
    says = "its annotations say {}x{}".format(*said)
    if header.orientation >= 5 and said == header.size[::-1]:
        return RowError(
            f"{has} once its EXIF orientation is applied, {says}, as it is stored: turn its boxes "
            "and size as well, or remove the tag",
            "annotations are of the image without its EXIF orientation",
        )
    return RowError(f"{has}, {says}", "image has another size than its annotations say")
