"""The image store's folder, and reading images that others sent."""

import base64
import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services import images
from services.errors import InvalidInputError, NotFoundError, TooLargeError
from services.images import ImageStore, decode_image, image_from_data_uri
from services.schemas.common import ImageRef


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_what_is_put_is_got(tmp_path: Path, picture: Image.Image) -> None:
    store, data = ImageStore(tmp_path), encoded(picture)
    ref = store.put(data)
    assert ref == ImageRef(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))
    assert store.put(data) == ref
    assert store.get(ref) == data
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [store.path(ref)]


def test_a_damaged_file_is_absent_and_can_be_put_again(
    tmp_path: Path, picture: Image.Image
) -> None:
    store, data = ImageStore(tmp_path), encoded(picture)
    ref = store.put(data)
    store.path(ref).write_bytes(data[:-1])
    with pytest.raises(NotFoundError, match="damaged"):
        store.get(ref)
    store.put(data)
    assert store.get(ref) == data


def test_an_unknown_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="a" * 64):
        ImageStore(tmp_path).get(ImageRef(sha256="a" * 64, num_bytes=1))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_decoding_gives_the_pixels(picture: Image.Image, kind: str) -> None:
    data = encoded(picture, kind) if kind != "WEBP" else encoded(picture, "WEBP")
    decoded = decode_image(data)
    assert (decoded.mode, decoded.size) == ("RGB", (7, 9))
    if kind != "WEBP":  # which is lossy
        assert np.array_equal(np.asarray(decoded), np.asarray(picture))


def test_grey_palette_and_alpha_become_rgb(picture: Image.Image) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        assert decode_image(encoded(picture.convert(mode))).mode == "RGB"


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_other_bytes_are_invalid(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        decode_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_every_cut_of_an_image_decodes_or_is_invalid(picture: Image.Image, kind: str) -> None:
    data = encoded(picture.resize((64, 64)), kind)
    outcomes = set()
    for end in range(1, len(data), max(1, len(data) // 50)):
        try:
            decode_image(data[:end])
            outcomes.add("decoded")
        except InvalidInputError:
            outcomes.add("invalid")
    assert "invalid" in outcomes


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no data."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


@pytest.mark.parametrize("side", [8_001, 12_000, 60_000])
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    with pytest.raises(TooLargeError, match="pixels"):
        decode_image(png_header(side, side))


def test_too_many_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 10)
    with pytest.raises(TooLargeError):
        decode_image(b"x" * 11)
    with pytest.raises(TooLargeError):
        ImageStore(tmp_path).put(b"x" * 11)
    for text in ("A" * 16, "A" * 200):
        with pytest.raises(TooLargeError):
            image_from_data_uri(text)


def test_data_uris_and_bare_base64(picture: Image.Image) -> None:
    data = encoded(picture)
    text = base64.b64encode(data).decode()
    assert image_from_data_uri(text) == data
    assert image_from_data_uri(f"data:image/png;base64,{text}") == data


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://example.org/a.png",
        "file:///etc/passwd",
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64,AA*A",
        "data:image/png;base64,",
        "ÄÖÜ",
        "AAA",
    ],
)
def test_other_texts_are_invalid(text: str) -> None:
    with pytest.raises(InvalidInputError):
        image_from_data_uri(text)
