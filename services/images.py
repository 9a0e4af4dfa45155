"""Images by their content, and the one way from their bytes to pixels.

`ImageStore` is a folder of files named by sha256, and Redis for hosts that share none. Images come
as bytes, by hash, or inside a data URI; no URL is ever fetched. `decode_image` makes the pixels
that every part of the system sees, by the rule in `docs/data.md`; its limits are checked before
anything is decoded.
"""

import asyncio
import base64
import binascii
import hashlib
import io
import os
import tempfile
import uuid
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from pillow_heif import register_heif_opener
from redis.asyncio import Redis

from scene_graph.boxes import smart_resize
from services.errors import InvalidInputError, NotFoundError, SggError, TooLargeError
from services.redis.client import redis_errors
from services.redis.keys import RunKeys
from services.schemas.common import ImageRef

MAX_IMAGE_BYTES = 32 * 1024 * 1024
"""An encoded file has so many at most."""
MAX_IMAGE_PIXELS = 64_000_000
"""A decoded image has so many at most: about 190 MB as RGB."""
MAX_ASPECT = 200
"""Longer side by shorter side: what Qwen's processors take."""
REMOTE_TTL_S = 600
"""An image in Redis lives this long after it was last shared; the trainer shares it again while its
group is sampled, and takes it out then."""
_SIGN = "sign"
"""A file of the folder."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "AVIF", "HEIF")
"""With a plain decoder in Pillow, or in pillow-heif for the photos of phones; some others of Pillow
run external programs."""
register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright"""
_PNG_TAGS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""Names of the chunks that may say a PNG's orientation"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What an encoded image says about itself."""

    width: int
    """Pixels of the upright image that `decode_image` gives."""
    height: int
    orientation: int
    """EXIF's: 1 where the image is stored upright; from 5 on width and height change places."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height


class ImageStore:
    """Encoded images, addressed by sha256.

    Example: `store.get(store.put(png_bytes)) == png_bytes`
    """

    def __init__(
        self, folder: Path, client: Redis | None = None, keys: RunKeys | None = None
    ) -> None:
        """Args are kept; the folder is made with the first image.

        Args:
            folder: A folder of this host.
            client: With `keys`, the second place that `share` writes and `fetch` reads.
            keys: The run's keys.
        """
        self._folder = folder
        self._remote = (client, keys) if client is not None and keys is not None else None

    def put(self, data: bytes) -> ImageRef:
        """Keep an encoded image. Putting the same bytes again changes nothing.

        Raises:
            TooLargeError: Over `MAX_IMAGE_BYTES`.
            InvalidInputError: No bytes.
        """
        _check_size(len(data))
        ref = ImageRef(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))
        path = self.path(ref)
        if _content(path) != data:  # a file that a crash has torn may have the size of a whole one
            _write_atomically(path, data)
        return ref

    def has(self, ref: ImageRef) -> bool:
        """Whether there is a file of the image's size."""
        try:
            return self.path(ref).stat().st_size == ref.num_bytes
        except FileNotFoundError:
            return False

    def remove(self, sha256s: Iterable[str]) -> None:
        """Remove images of the folder, there or not."""
        for sha256 in sha256s:
            self._file(sha256).unlink(missing_ok=True)

    def names(self) -> set[str]:
        """The sha256 of each image of the folder."""
        return {file.name for file in self._folder.glob("??/*") if len(file.name) == 64}

    def sign(self) -> str:
        """Leave a new sign in the folder, by which others know it as this one."""
        sign = uuid.uuid4().hex
        _write_atomically(self._folder / _SIGN, sign.encode())
        return sign

    def seen_sign(self) -> str | None:
        """The sign that this host finds in the folder; None where there is none."""
        try:
            return (self._folder / _SIGN).read_text()
        except OSError:
            return None

    def path(self, ref: ImageRef) -> Path:
        """The image's file on this host, there or not."""
        return self._file(ref.sha256)

    def get(self, ref: ImageRef) -> bytes:
        """The image's bytes from the folder, verified. A damaged file counts as absent.

        Raises:
            NotFoundError: Not in the folder.
        """
        path = self.path(ref)
        data = _content(path)
        if not data:
            raise NotFoundError(f"image {ref.sha256} is not in {self._folder}")
        if not _matches(data, ref):
            with suppress(OSError):  # a server may only read: then the trainer puts it again
                path.unlink()
            raise NotFoundError(f"image {ref.sha256} in {self._folder} is damaged")
        return data

    async def share(self, ref: ImageRef) -> None:
        """Put an image of the folder into Redis, or renew its time there.

        Raises:
            NotFoundError: Not in the folder.
            UnavailableError: Redis is away.
        """
        if self._remote is None:
            return
        client, keys = self._remote
        with redis_errors(client):
            async with client.pipeline(transaction=True) as pipe:
                pipe.expire(keys.image(ref.sha256), REMOTE_TTL_S)
                pipe.type(keys.image(ref.sha256))
                if all(found in (1, True, b"string") for found in await pipe.execute()):
                    return
            data = await asyncio.to_thread(self.get, ref)
            await client.set(keys.image(ref.sha256), data, ex=REMOTE_TTL_S)

    async def unshare(self, sha256s: Collection[str]) -> None:
        """Take images out of Redis, there or not.

        Raises:
            UnavailableError: Redis is away.
        """
        if self._remote is not None and sha256s:
            client, keys = self._remote
            with redis_errors(client):
                await client.unlink(*map(keys.image, sha256s))

    async def fetch(self, ref: ImageRef) -> bytes:
        """The image's bytes from the folder, else from Redis.

        Raises:
            NotFoundError: In neither, or damaged in both.
            UnavailableError: Not in the folder, and Redis is away.
        """
        try:
            return await asyncio.to_thread(self.get, ref)
        except NotFoundError:
            if self._remote is None:
                raise
        client, keys = self._remote
        with redis_errors(client):
            data: Any = (await client.mget([keys.image(ref.sha256)]))[0]  # of another type: None
            if data is not None and not _matches(data, ref):
                await client.delete(keys.image(ref.sha256))  # the trainer puts it there again
                data = None
        if data is None:
            raise NotFoundError(f"image {ref.sha256} is neither in {self._folder} nor in Redis")
        return bytes(data)

    def _file(self, sha256: str) -> Path:
        return self._folder / f"{sha256[:2]}/{sha256}"


def image_header(data: bytes) -> ImageHeader:
    """The size of the image that `decode_image` would give. All limits come before any decoding.

    Of pixels nothing is decoded, but for a PNG that may have its orientation behind them.

    Raises:
        TooLargeError: Over `MAX_IMAGE_BYTES` or `MAX_IMAGE_PIXELS`.
        InvalidInputError: Not an image of a known format, its header is damaged, or its sides are
            further apart than `MAX_ASPECT`.
    """
    with _opened(data) as image:
        orientation = _orientation(image, data)
        width, height = image.size[::-1] if orientation >= 5 else image.size
    return ImageHeader(width=width, height=height, orientation=orientation)


def decode_image(data: bytes) -> Image.Image:
    """Encoded bytes to upright RGB: what every part of the system sees of an image.

    The EXIF orientation is applied, transparent parts are put on white, of 16 bits the higher 8 are
    kept, of an animation the first frame. No tag is left on the result: nothing turns it
    again.

    Raises:
        TooLargeError: As `image_header`.
        InvalidInputError: As `image_header`, or the image is damaged.
    """
    with _opened(data) as image:
        image.load()
        turn = _TURNS.get(_orientation(image, data))
        picture = _rgb(image)
    if turn is not None:
        picture = picture.transpose(turn)
    picture.info = {}
    return picture


def check_fits(width: int, height: int, *, factor: int, min_pixels: int, max_pixels: int) -> None:
    """See that an image can be resized to the pixels that a run allows.

    A strip cannot become thinner than one patch: beyond some length it has more pixels than that.

    Args:
        width: The image's, in pixels.
        height: The image's, in pixels.
        factor: Sides of the resized image are multiples of it.
        min_pixels: The resized image has at least so many.
        max_pixels: The resized image has at most so many.

    Raises:
        InvalidInputError: It has too many pixels for its aspect.
    """
    resized = smart_resize(
        width, height, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels
    )
    if min(resized) == factor and resized[0] * resized[1] > max_pixels:
        raise InvalidInputError(
            f"image is too narrow: {width}x{height} pixels become {resized[0]}x{resized[1]}, over "
            f"model.max_pixels = {max_pixels}"
        )


def image_from_data_uri(text: str) -> bytes:
    """The encoded bytes in `data:image/…;base64,…`, or in bare base64.

    Raises:
        TooLargeError: Over `MAX_IMAGE_BYTES`.
        InvalidInputError: Another kind of URI, or not base64.
    """
    if len(text) > MAX_IMAGE_BYTES * 4 // 3 + 100:
        raise TooLargeError(
            f"image text is over the {MAX_IMAGE_BYTES} bytes that an image may have"
        )
    head, comma, body = text.partition(",")
    kind = head.strip().lower()
    if comma and not (kind.startswith("data:image/") and kind.endswith(";base64")):
        raise InvalidInputError(
            "an image URI starts with data:image/…;base64, and nothing else is read"
        )
    if not comma and ":" in text[:100]:
        raise InvalidInputError(
            "images come as base64 or data URI; URLs and paths are never fetched"
        )
    try:
        data = base64.b64decode("".join((body if comma else text).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(f"image text is not base64: {error}") from error
    _check_size(len(data))
    return data


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The header, which keeps all limits. Whatever Pillow raises inside is the image's fault."""
    _check_size(len(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our cap is lower
            image = Image.open(io.BytesIO(data), formats=FORMATS)  # noqa: TID251 - the door
        with image:
            _check_shape(*image.size)
            yield image
    except SggError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"image is too large: over {MAX_IMAGE_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InvalidInputError(f"not an image of the formats {', '.join(FORMATS)}") from error
    except Exception as error:
        # Pillow's decoders raise anything: of IndexError and struct.error to errors of their own.
        raise InvalidInputError(
            f"image is damaged: {str(error) or type(error).__name__}"
        ) from error


def _orientation(image: Image.Image, data: bytes) -> int:
    """1 to 8, as EXIF or XMP say it; 1 where they do not, or cannot be read."""
    if image.format == "PNG" and not any(tag in data for tag in _PNG_TAGS):
        return 1  # Pillow would decode all pixels to look behind them
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
        return int(found) if found in _TURNS else 1
    except Exception:  # noqa: BLE001 - a damaged tag does not cost the image
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """A loaded image as RGB on white."""
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        grey = (pixels >> 8).astype(np.uint8)
        grey[pixels == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(rgba, mask=rgba.getchannel("A"))
    return on_white


def _check_size(num_bytes: int) -> None:
    if num_bytes == 0:
        raise InvalidInputError("image has no bytes")
    if num_bytes > MAX_IMAGE_BYTES:
        raise TooLargeError(f"image is too large: over {MAX_IMAGE_BYTES:,} bytes")


def _check_shape(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise TooLargeError(
            f"image is too large: {width}x{height}, over {MAX_IMAGE_PIXELS:,} pixels"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidInputError(
            f"image is too narrow: {width}x{height} pixels, sides are {MAX_ASPECT} to 1 at most"
        )


def _matches(data: bytes, ref: ImageRef) -> bool:
    return hashlib.sha256(data).hexdigest() == ref.sha256


def _content(path: Path) -> bytes:
    """A file's bytes; none where there is no file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return b""


def _write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the whole file or none, also after a crash in between."""
    folder = path.parent
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".new-")
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
