"""JPEG files that were cut and closed again: Pillow decodes them without an error."""

import numpy as np
import pytest
from PIL import Image

from data.captioned import load_captioned
from data.images.decoding import problem
from tests.data.image_files import encoded, write_folder

END = b"\xff\xd9"
OPTIONS = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "restarts": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
}


def picture(kind: str, size: tuple[int, int]) -> Image.Image:
    """A rough image, or one whose end has one colour, as that of a cut file has."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    if kind == "white below":
        pixels[size[1] // 2 :] = 255
    return Image.fromarray(pixels)


def closed(whole: bytes, share: float) -> bytes:
    """Cut after a share of what follows the first scan's header, and closed."""
    start = whole.index(b"\xff\xda") + 14
    return whole[: start + int((len(whole) - start) * share)].rstrip(b"\xff") + END


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", ["rough", "white below"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_cut_image_is_unreadable(options: dict, kind: str, share: float) -> None:
    whole = encoded(picture(kind, (96, 160)), "jpeg", **options)
    assert problem(whole) is None
    assert problem(closed(whole, share))[0] == "unreadable images"


@pytest.mark.parametrize(
    "options", [*OPTIONS.values(), {"quality": 100}, {"quality": 5, "progressive": True}]
)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 33), (64, 64)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_whole_images_are_usable(options: dict, size: tuple[int, int], mode: str) -> None:
    """Of one colour, too, and whatever follows the end, such as a phone's second picture."""
    for image in (picture("white below", size), Image.new("RGB", size, "white")):
        whole = encoded(image.convert(mode), "jpeg", **options)
        assert problem(whole) is None and problem(whole + b"more" + whole) is None


def test_a_thumbnail_in_the_header_is_not_the_image() -> None:
    """Its end mark is not that of the file."""
    exif = b"Exif\0\0" + encoded(Image.new("RGB", (8, 8), "red"), "jpeg")
    whole = encoded(picture("rough", (64, 64)), "jpeg", exif=exif)
    assert problem(whole) is None and problem(closed(whole, 0.5))


def test_a_cut_image_is_counted_and_named(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    whole = encoded(picture("rough", (64, 64)), "jpeg", progressive=True)
    files = {"a.jpg": whole, "a.txt": "a", "b.jpg": closed(whole, 0.5), "b.txt": "b"}
    images = load_captioned(write_folder(tmp_path, files))
    assert [sample.id for sample in images.samples] == ["a"] and images.skipped == {"unreadable images": 1}
    assert "skipped 'b': unreadable images: its data end before its last block" in caplog.text
