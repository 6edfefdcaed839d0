"""Images of every kind become right RGB of 8 bits, or are left out for a reason."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.captioned import Sample, UnreadableImage, load_captioned
from data.images.decoding import MAX_PIXELS, problem
from tests.data.image_files import damaged, encoded, noise, write_folder

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257  # 0 to 65535


def png(width: int, height: int, depth: int, color: int, pixels: bytes = b"") -> bytes:
    """A PNG by its specification, for what Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def rgb(image: bytes) -> np.ndarray:
    assert problem(image) is None
    decoded = Sample("a", image, "").rgb()
    assert decoded.mode == "RGB"
    return np.asarray(decoded)


def test_16_bit_grey_is_scaled() -> None:
    """Clipping would leave 255 everywhere but in the first pixel."""
    image = rgb(encoded(Image.fromarray(RAMP), "png"))
    assert np.array_equal(image, np.repeat(np.arange(256).reshape(16, 16, 1), 3, 2))


def test_16_bit_grey_with_a_transparent_value() -> None:
    """That value is white, the others are as they were."""
    image = rgb(encoded(Image.fromarray(RAMP), "png", transparency=257 * 100))
    assert image[6, 4].tolist() == [255] * 3 and image[6, 5].tolist() == [101] * 3


def test_16_bit_colour_is_scaled() -> None:
    """One pixel of half red, full green and no blue, after its row's filter byte."""
    assert rgb(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 32896, 65535, 0)))[0, 0].tolist() == [128, 255, 0]


def test_cmyk_keeps_its_colours() -> None:
    """As print-ready JPEGs have it."""
    image = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    difference = rgb(encoded(image, "jpeg", quality=100)).astype(int) - [200, 30, 60]
    assert np.abs(difference).max() <= 4


def test_a_palette_with_a_transparent_colour() -> None:
    """The transparent colour is white, the other one is its own."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert rgb(encoded(image, "png", transparency=0))[0].tolist() == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize("mode, seen", [("1", 255), ("L", 90), ("LA", 90)])
def test_grey_of_other_depths(mode: str, seen: int) -> None:
    """Bits, bytes, and bytes that are opaque."""
    color = {"1": 1, "L": 90, "LA": (90, 255)}[mode]
    assert rgb(encoded(Image.new(mode, (2, 2), color), "png"))[0, 0].tolist() == [seen] * 3


@pytest.mark.parametrize("form", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_counts(form: str) -> None:
    """Red, then blue."""
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    animation = encoded(red, form, save_all=True, append_images=[blue], lossless=True)
    assert Image.open(io.BytesIO(animation)).n_frames == 2
    assert rgb(animation)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_an_image_is_turned_as_exif_says(form: str) -> None:
    """Orientation 6, a camera held upright: what is stored left stands on top."""
    image = Image.new("RGB", (64, 32), "blue")
    image.paste("red", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = rgb(encoded(image, form, exif=exif)).astype(int)
    assert turned.shape == (64, 32, 3)
    assert np.abs(turned[4, 16] - [255, 0, 0]).max() < 20 and np.abs(turned[60, 16] - [0, 0, 255]).max() < 20


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_does_not_cost_the_image() -> None:
    image = encoded(Image.new("RGB", (8, 8), "red"), "png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0")
    assert rgb(image)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [10_000, 30_000])
def test_an_image_beyond_the_limit_is_not_decoded(tmp_path: Path, size: int) -> None:
    """Also beyond twice the limit, where Pillow raises; it does not warn either, it is counted."""
    assert size**2 > MAX_PIXELS
    files = {"a.png": png(size, size, 1, 0), "a.txt": "bomb", "b.png": encoded(), "b.txt": "fine"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = load_captioned(write_folder(tmp_path, files))
    assert [sample.id for sample in images.samples] == ["b"]
    assert images.skipped == {"too large images": 1}


@pytest.mark.parametrize("image", [b"", b"\x89PNG\r\n\x1a\n", png(0, 5, 8, 0), png(5, 0, 8, 2)])
def test_nothing_is_no_image(image: bytes) -> None:
    """Empty files, a bare signature, and images without width or height."""
    assert problem(image)[0] == "unreadable images"


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "gif", "bmp", "avif"])
def test_half_an_image_is_unreadable(form: str) -> None:
    """Whatever its header says."""
    image = noise(1, form)
    assert problem(image) is None
    assert problem(image[: len(image) // 2])[0] == "unreadable images"


def damaged_ones() -> dict[str, bytes]:
    """Damage that headers and checksums do not show."""
    pixels = np.random.default_rng(0).integers(0, 256, (192, 193), np.uint8)
    pixels[:, 0] = 0
    whole, data = png(64, 192, 8, 2, pixels.tobytes()), b"IDAT" + zlib.compress(pixels.tobytes())[:1000]
    short = whole[:33] + struct.pack(">I", 1000) + data + struct.pack(">I", zlib.crc32(data)) + whole[-12:]
    jpeg = bytearray(encoded(Image.fromarray(pixels), "jpeg", progressive=True))
    scan = jpeg.index(b"\xff\xda")
    jpeg[scan + 100 : scan + 4000 : 37] = bytes(value ^ 0x5A for value in jpeg[scan + 100 : scan + 4000 : 37])
    return {"idat": short, "no scan": damaged(), "jpeg": bytes(jpeg)}


@pytest.mark.parametrize("kind", ["idat", "no scan", "jpeg"])
def test_damage_that_only_decoding_shows_is_counted(tmp_path: Path, kind: str) -> None:
    """And never decoded in part."""
    image = damaged_ones()[kind]
    files = {"a.png": image, "a.txt": "a", "b.png": encoded(), "b.txt": "b"}
    images = load_captioned(write_folder(tmp_path, files))
    assert len(images) == 1 and images.skipped == {"unreadable images": 1}
    with pytest.raises(UnreadableImage, match="image 'a' cannot be decoded"):
        Sample("a", image, "").rgb()


def test_postscript_is_not_run() -> None:
    """Pillow would hand it to Ghostscript, whatever the file is called."""
    assert problem(encoded(Image.new("RGB", (8, 8)), "eps"))[0] == "unreadable images"
