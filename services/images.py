"""Images by their content: a folder of files named by sha256, and Redis for hosts that share none.

Images come as bytes, by hash, or inside a data URI. No URL is ever fetched. Size limits are checked
before anything is decoded.
"""

import asyncio
import base64
import binascii
import hashlib
import io
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from redis.asyncio import Redis

from services.errors import InvalidInputError, NotFoundError, TooLargeError
from services.keys import RunKeys
from services.redis_client import redis_errors
from services.schemas.common import ImageRef

MAX_IMAGE_BYTES = 32 * 1024 * 1024
"""Of an encoded file."""
MAX_IMAGE_PIXELS = 64_000_000
"""Of a decoded image: about 190 MB as RGB."""
REMOTE_TTL_S = 600
"""An image in Redis lives this long after it was last shared; the trainer shares it again while its
group is open."""
# Formats with a plain decoder in Pillow; some others run external programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


class ImageStore:
    """Encoded images, addressed by sha256.

    Example: `store.get(store.put(png_bytes)) == png_bytes`
    """

    def __init__(
        self, folder: Path, client: Redis | None = None, keys: RunKeys | None = None
    ) -> None:
        """Args are kept; the folder is made with the first image.

        Args:
            folder: Of this host.
            client: With `keys`, the second place that `share` writes and `fetch` reads.
            keys: Of the run.
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
        if not path.is_file():
            _write_atomically(path, data)
        return ref

    def path(self, ref: ImageRef) -> Path:
        """The image's file on this host, there or not."""
        return self._folder / ref.sha256[:2] / ref.sha256

    def get(self, ref: ImageRef) -> bytes:
        """The image's bytes from the folder, verified. A damaged file counts as absent.

        Raises:
            NotFoundError: Not in the folder.
        """
        path = self.path(ref)
        data = path.read_bytes() if path.is_file() else b""
        if not data:
            raise NotFoundError(f"image {ref.sha256} is not in {self._folder}")
        if not _matches(data, ref):
            path.unlink(missing_ok=True)
            raise NotFoundError(f"image {ref.sha256} in {self._folder} was damaged; removed it")
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
            if await client.expire(keys.image(ref.sha256), REMOTE_TTL_S):
                return
            data = await asyncio.to_thread(self.get, ref)
            await client.set(keys.image(ref.sha256), data, ex=REMOTE_TTL_S)

    async def fetch(self, ref: ImageRef) -> bytes:
        """The image's bytes from the folder, else from Redis (then kept in the folder too).

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
            data: Any = await client.get(keys.image(ref.sha256))
        if data is None or not _matches(data, ref):
            raise NotFoundError(f"image {ref.sha256} is neither in {self._folder} nor in Redis")
        await asyncio.to_thread(self.put, data)
        return bytes(data)


def decode_image(data: bytes) -> Image.Image:
    """Encoded bytes to RGB. The first frame of an animation; EXIF rotation is not applied.

    Annotations count pixels as they are stored, so rotating here would move every box.

    Raises:
        TooLargeError: Over `MAX_IMAGE_BYTES` or `MAX_IMAGE_PIXELS`.
        InvalidInputError: Not an image of a known format, or damaged.
    """
    _check_size(len(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our cap is lower
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_pixels(*image.size)
        return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"image has more than {MAX_IMAGE_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise InvalidInputError(f"not an image; known formats: {', '.join(_FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's ways to say "damaged"
        raise InvalidInputError(f"image is damaged: {error}") from error


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
    if comma and not (head.startswith("data:image/") and head.endswith(";base64")):
        raise InvalidInputError(
            "an image URI starts with data:image/…;base64, and nothing else is read"
        )
    if not comma and ":" in text[:100]:
        raise InvalidInputError(
            "images come as base64 or data URI; URLs and paths are never fetched"
        )
    try:
        data = base64.b64decode(body if comma else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(f"image text is not base64: {error}") from error
    _check_size(len(data))
    return data


def _check_size(num_bytes: int) -> None:
    if num_bytes == 0:
        raise InvalidInputError("image has no bytes")
    if num_bytes > MAX_IMAGE_BYTES:
        raise TooLargeError(f"image of {num_bytes} bytes is over the limit of {MAX_IMAGE_BYTES}")


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise TooLargeError(
            f"image of {width}x{height} is over the limit of {MAX_IMAGE_PIXELS} pixels"
        )


def _matches(data: bytes, ref: ImageRef) -> bool:
    return hashlib.sha256(data).hexdigest() == ref.sha256


def _write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the whole file or none, also after a crash in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
