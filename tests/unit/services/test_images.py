"""The image store's folder, and reading images that others sent."""

import base64
import hashlib
from pathlib import Path

import pytest
from PIL import Image

from services import images
from services.errors import InvalidInputError, NotFoundError, TooLargeError
from services.images import ImageStore, decode_image, image_from_data_uri
from services.schemas.common import ImageRef
from tests.tagged_pictures import encoded, noise


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(noise(9, 7))


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


def test_a_torn_file_is_put_again(tmp_path: Path, picture: Image.Image) -> None:
    """A crash of the host may leave a file of the right size without its last blocks."""
    store, data = ImageStore(tmp_path), encoded(picture)
    ref = store.put(data)
    for torn in (data[:-1], data[:-9] + bytes(9), b""):
        store.path(ref).write_bytes(torn)
        assert store.has(ref) == (len(torn) == len(data))
        store.put(data)
        assert store.get(ref) == data


def test_an_unknown_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="a" * 64):
        ImageStore(tmp_path).get(ImageRef(sha256="a" * 64, num_bytes=1))


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
    for head in ("data:image/png;base64", "DATA:IMAGE/PNG;BASE64", "data:image/heic;x=y;base64"):
        assert image_from_data_uri(f"{head},{text}") == data
    broken = base64.encodebytes(data).decode().replace("\n", "\r\n")
    assert "\r\n" in broken
    assert image_from_data_uri(broken) == data


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
