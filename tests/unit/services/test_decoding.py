"""From bytes to pixels: upright, on white, 8 bits, within the limits, or refused."""

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from services.errors import InvalidInputError, TooLargeError
from services.images import MAX_IMAGE_PIXELS, check_fits, decode_image, image_header
from tests.shared_data import SHARED_DATA
from tests.tagged_pictures import (
    ORIENTATIONS,
    XMP,
    chunk,
    encoded,
    exif,
    noise,
    png_header,
    stored,
    tagged,
    with_chunk,
)

UPRIGHT = noise(9, 7)
CASES = SHARED_DATA.parent / "cases"


def pixels(data: bytes) -> Any:
    return np.asarray(decode_image(data))


def is_plain(picture: Image.Image) -> bool:
    """Nothing is left that anybody could turn once more."""
    again = ImageOps.exif_transpose(picture)
    return not picture.info and not picture.getexif() and again.tobytes() == picture.tobytes()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_every_orientation_is_applied_once(kind: str, orientation: int) -> None:
    smooth = np.asarray(Image.fromarray(UPRIGHT).resize((70, 90)))
    upright = smooth if kind == "JPEG" else UPRIGHT
    data = tagged(upright, orientation, kind)
    picture, header = decode_image(data), image_header(data)
    assert (picture.mode, picture.size) == ("RGB", header.size)
    assert header.orientation == orientation
    assert is_plain(picture)
    off = np.abs(np.asarray(picture).astype(int) - upright)
    assert off.max() <= (24 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_is_turned(mode: str) -> None:
    if mode == "I;16":
        plain = Image.fromarray(np.arange(63, dtype=np.uint16).reshape(9, 7) * 999)
    else:
        plain = Image.fromarray(UPRIGHT).convert(mode)
    turned = plain.transpose(Image.Transpose.ROTATE_90)  # as stored for orientation 6
    data = encoded(turned, exif=exif(6))
    assert np.array_equal(pixels(data), pixels(encoded(plain)))
    assert image_header(data).size == (7, 9)


def test_cmyk_and_the_photos_of_two_lenses_are_turned() -> None:
    cmyk = Image.fromarray(UPRIGHT).resize((70, 90)).convert("CMYK")
    plain = pixels(encoded(cmyk, "JPEG", quality=95))
    turned = cmyk.transpose(Image.Transpose.ROTATE_90)
    found = pixels(encoded(turned, "JPEG", quality=95, exif=exif(6)))
    assert np.abs(found.astype(int) - plain).max() <= 16
    first = Image.fromarray(stored(UPRIGHT, 6))
    mpo = encoded(first, "MPO", save_all=True, append_images=[first], exif=exif(6))
    assert (decode_image(mpo).size, image_header(mpo).size) == ((7, 9), (7, 9))
    assert is_plain(decode_image(mpo))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"eXIf", exif(8).removeprefix(b"Exif\0\0")),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.format(8).encode()),
        (
            b"zTXt",
            b"Raw profile type exif\0\0"
            + zlib.compress(f"\nexif\n{len(exif(8)):8}\n{exif(8).hex()}\n".encode()),
        ),
    ],
)
def test_orientations_of_png_anywhere(name: bytes, body: bytes, late: bool) -> None:
    data = with_chunk(encoded(Image.fromarray(stored(UPRIGHT, 8))), name, body, late=late)
    assert np.array_equal(pixels(data), UPRIGHT)
    assert image_header(data).size == (7, 9)
    assert is_plain(decode_image(data))


@pytest.mark.parametrize("kind", ["WEBP", "JPEG"])
def test_orientation_in_xmp(kind: str) -> None:
    data = encoded(Image.fromarray(stored(UPRIGHT, 6)), kind, xmp=XMP.format(6).encode())
    assert decode_image(data).size == image_header(data).size == (7, 9)
    assert is_plain(decode_image(data))


@pytest.mark.parametrize("value", [exif(0), exif(9), b"Exif\0\0MM\0*nonsense", b"Exif\0\0", b"x"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_tag_without_meaning_costs_nothing(kind: str, value: bytes) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(UPRIGHT), kind, exif=value, **options)
    assert decode_image(data).size == image_header(data).size == (7, 9)
    assert is_plain(decode_image(data))


def test_16_bits_keep_the_higher_8() -> None:
    grey = np.array([[0, 255, 256, 0x8000, 0xFFFF]], dtype=np.uint16)
    assert pixels(encoded(Image.fromarray(grey)))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    key = with_chunk(encoded(Image.fromarray(grey)), b"tRNS", struct.pack(">H", 256))
    assert pixels(key)[0, :, 2].tolist() == [0, 0, 255, 128, 255]
    colour = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    body = b"\0" + struct.pack(">HHH", 0x12FF, 0x8000, 0xFFFF)
    data = png_header(1, 1)[:8] + chunk(b"IHDR", colour) + chunk(b"IDAT", zlib.compress(body))
    assert pixels(data + chunk(b"IEND", b"")).tolist() == [[[0x12, 0x80, 0xFF]]]


def test_transparent_parts_are_white() -> None:
    red, half, hidden = (200, 0, 0, 255), (200, 0, 0, 128), (0, 0, 200, 0)
    rgba = np.array([[red, half, hidden]], dtype=np.uint8)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        found = pixels(encoded(Image.fromarray(rgba), kind, **options))
        assert found.tolist() == [[[200, 0, 0], [227, 127, 127], [255, 255, 255]]]
    grey = np.array([[[9, 255], [9, 0]]], dtype=np.uint8)
    assert pixels(encoded(Image.fromarray(grey, "LA"))).tolist() == [[[9] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 0, 0, 200])
    palette.putpixel((1, 0), 1)
    for transparency in (1, b"\xff\x00"):
        for kind in ("PNG", "GIF") if transparency == 1 else ("PNG",):
            data = encoded(palette, kind, transparency=transparency)
            assert pixels(data).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    key = encoded(Image.fromarray(rgba[..., :3].copy()), transparency=(0, 0, 200))
    assert pixels(key)[0, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG"])
def test_plain_pictures_keep_their_pixels(kind: str) -> None:
    picture = Image.fromarray(UPRIGHT)
    data = encoded(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert decode_image(data).tobytes() == expected.tobytes()
    assert kind == "JPEG" or np.array_equal(pixels(data), UPRIGHT)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_the_photos_of_phones_are_upright(kind: str, orientation: int) -> None:
    """Their container turns them, and their EXIF says so once more."""
    smooth = Image.fromarray(UPRIGHT).resize((70, 90))
    lying = Image.fromarray(stored(np.asarray(smooth), orientation))
    data = encoded(lying, kind, quality=95, exif=exif(orientation))
    picture, header = decode_image(data), image_header(data)
    assert (picture.mode, picture.size, header.size) == ("RGB", (70, 90), (70, 90))
    assert is_plain(picture)
    assert np.abs(np.asarray(picture).astype(int) - smooth).max() <= 40


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_photos_of_phones_are_known_by_their_content(kind: str) -> None:
    """`mif1` is what both are: the brands after it say which."""
    data = encoded(Image.new("RGBA", (64, 64), (200, 0, 0, 0)), kind, quality=95)
    generic = data[:8] + b"mif1" + data[12:]
    for photo in (data, generic):
        assert np.abs(pixels(photo).astype(int) - 255).max() <= 2
    sizes = data.replace(struct.pack(">II", 64, 64), struct.pack(">II", 20_000, 20_000))
    assert sizes != data
    for read in (decode_image, image_header):
        with pytest.raises((InvalidInputError, TooLargeError)):
            read(sizes)


def test_of_an_animation_the_first_frame() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert image_header(data).size == (8, 6)
        assert np.abs(pixels(data).astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encoded(Image.new("RGB", (4, 4)), "TIFF"),
        encoded(Image.new("RGB", (4, 4)), "PPM"),
    ],
)
def test_other_bytes_are_invalid(data: bytes) -> None:
    for read in (decode_image, image_header):
        with pytest.raises(InvalidInputError, match=r"no bytes|PNG, JPEG, WEBP, BMP, GIF"):
            read(data)


FILES = {
    **{kind: tagged(noise(32, 32), 6, kind) for kind in ("PNG", "JPEG", "WEBP")},
    "GIF": encoded(Image.fromarray(noise(32, 32)), "GIF"),
    "BMP": encoded(Image.fromarray(noise(32, 32)), "BMP"),
    "AVIF": encoded(Image.fromarray(noise(32, 32)), "AVIF", exif=exif(6)),
    "HEIF": encoded(Image.fromarray(noise(32, 32)), "HEIF", exif=exif(6)),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "HEIF"])
def test_every_cut_of_an_image_decodes_or_is_invalid(kind: str) -> None:
    data, outcomes = FILES[kind], set()
    for end in range(1, len(data), max(1, len(data) // 50)):
        for read in (image_header, decode_image):
            try:
                read(data[:end])
                outcomes.add("decoded")
            except InvalidInputError:
                outcomes.add("invalid")
    assert "invalid" in outcomes


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_changed_byte_costs_the_image_at_most(kind: str) -> None:
    whole, rng = FILES[kind], np.random.default_rng(0)
    for end in (len(whole), 100):  # anywhere, and in the header
        for _ in range(200):
            data = bytearray(whole)
            data[rng.integers(end)] = rng.integers(256)
            for read in (image_header, decode_image):
                with contextlib.suppress(InvalidInputError, TooLargeError):
                    read(bytes(data))


@pytest.mark.parametrize("side", [8_001, 12_000, 60_000])
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    for read in (decode_image, image_header):
        with pytest.raises(TooLargeError, match=r"64,000,000 pixels"):
            read(png_header(side, side))
    assert image_header(png_header(8_000, 8_000)).size == (8_000, 8_000)
    assert MAX_IMAGE_PIXELS == 8_000 * 8_000


def test_long_strips_are_refused_from_the_header() -> None:
    assert image_header(png_header(2_000, 10)).size == (2_000, 10)
    for size in ((2_001, 10), (10, 2_001)):
        with pytest.raises(InvalidInputError, match=r"too narrow: .* 200 to 1"):
            image_header(png_header(*size))


def test_a_long_text_costs_the_image() -> None:
    """Pillow says so with a plain ValueError."""
    text = b"k\0\0" + zlib.compress(b"a" * 2_000_000)
    data = with_chunk(encoded(Image.fromarray(UPRIGHT)), b"zTXt", text)
    for read in (decode_image, image_header):
        with pytest.raises(InvalidInputError, match=r"image is damaged: .*too large"):
            read(data)


LIMITS = {"factor": 28, "min_pixels": 3136, "max_pixels": 16 * 28 * 28}


@pytest.mark.parametrize("size", [(112, 112), (16 * 28, 28), (1600, 100), (640, 480), (40, 20)])
def test_most_shapes_fit_the_pixels_of_a_run(size: tuple[int, int]) -> None:
    check_fits(*size, **LIMITS)


@pytest.mark.parametrize("size", [(1600, 80), (20 * 28, 28), (28, 20 * 28), (3000, 20)])
def test_strips_with_too_many_pixels_do_not(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError, match=r"too narrow: .*max_pixels = 12544"):
        check_fits(*size, **LIMITS)


@pytest.mark.skipif(not CASES.is_dir(), reason="the failing inputs are not here")
def test_the_kinds_that_users_brought() -> None:
    folder = CASES / "01_image_kinds"
    assert (
        decode_image((folder / "exif6.jpg").read_bytes()).size
        == image_header((folder / "exif6.jpg").read_bytes()).size
    )
    assert pixels((folder / "gray16.png").read_bytes()).std() > 10
    for name in ("tiff.tif", "ppm.ppm"):
        with pytest.raises(InvalidInputError):
            decode_image((folder / name).read_bytes())
    for name in ("palette.png", "cmyk.jpg"):
        expected = Image.open(folder / name).convert("RGB")
        assert decode_image((folder / name).read_bytes()).tobytes() == expected.tobytes()
