"""Pictures that come more than once: as other files, other sizes, and under other captions."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.captioned import CaptionedImages, load_captioned
from data.repeats.near import NEAR, first_near
from data.repeats.pictures import LEFT_OUT, pictures_of, without_repeats
from tests.data.image_files import damaged, encoded, write_folder
from tests.data.inspect.test_inspect import inspected


def photo(seed: int, size: int = 256) -> Image.Image:
    """Coarse and fine structure, as a photograph has."""
    random, layers = np.random.default_rng(seed), np.zeros((size, size, 3))
    for side, strength in ((4, 110), (16, 60), (64, 25), (256, 8)):
        cells = Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8))
        layers += (np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC)) / 255 - 0.5) * strength
    return Image.fromarray((layers + 128).clip(0, 255).astype(np.uint8))


def captioned(folder: Path, files: dict[str, bytes], captions: dict[str, str] | None = None) -> str:
    """A folder of images, each with a caption of its own unless `captions` has it."""
    texts = {Path(name).stem: f"caption of {name}" for name in files} | (captions or {})
    return write_folder(folder, files | {f"{name}.txt": text for name, text in texts.items()})


def repeats(source: str) -> dict[str, tuple[str, bool]]:
    """Which sample repeats which, and whether its pixels are the same."""
    pictures = pictures_of(load_captioned(source).samples)
    ids = [sample.id for sample in pictures.samples]
    return {
        key: (ids[first], bool(same))
        for key, first, same in zip(ids, pictures.first, pictures.same_pixels, strict=True)
        if ids[first] != key
    }


def test_a_picture_is_found_as_another_file(tmp_path: Path) -> None:
    """The same pixels in another format; nearly the same after loss, scaling, or both. Not a crop."""
    image = photo(0)
    files = {
        "a.png": encoded(image), "a_bmp.bmp": encoded(image, "BMP"),
        "a_webp.webp": encoded(image, "WEBP", lossless=True),
        "b_jpeg.jpg": encoded(image, "JPEG", quality=50), "b_webp.webp": encoded(image, "WEBP", quality=50),
        "c_half.png": encoded(image.resize((128, 128), Image.Resampling.LANCZOS)),
        "c_large.jpg": encoded(image.resize((512, 512), Image.Resampling.BICUBIC), "JPEG", quality=75),
        "d_crop.png": encoded(image.crop((16, 16, 240, 240))),
        "d_mirror.png": encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "e.png": encoded(photo(1)),
    }  # fmt: skip
    near = dict.fromkeys(["b_jpeg", "b_webp", "c_half", "c_large"], ("a", False))
    assert repeats(captioned(tmp_path, files)) == {"a_bmp": ("a", True), "a_webp": ("a", True)} | near


def test_the_search_finds_what_comparing_all_finds() -> None:
    """Thumbnails at distances around the limit, with repeats; each is compared with the firsts alone."""
    random = np.random.default_rng(0)
    centres = random.integers(20, 235, (40, 16, 16, 3))
    noise = random.normal(size=(400, 16, 16, 3)) * random.uniform(0, 1.2 * NEAR, (400, 1, 1, 1))
    thumbnails = (centres[random.integers(40, size=400)] + noise).round().astype(np.uint8)
    thumbnails[200:260] = thumbnails[:60]
    flat = thumbnails.reshape(400, -1).astype(float)
    expected: list[int] = []
    for number, row in enumerate(flat):
        rms = np.sqrt(((flat[:number] - row) ** 2).mean(1))
        expected.append(next((n for n in range(number) if rms[n] <= NEAR and expected[n] == n), number))
    found = first_near(thumbnails)
    assert found.tolist() == expected and 60 < (found != np.arange(400)).sum() < 380


@pytest.mark.parametrize("count", [1, 2])
def test_pictures_of_one_colour(count: int) -> None:
    assert first_near(np.full((count, 16, 16, 3), 255, np.uint8)).tolist() == [0] * count


def test_a_placeholder_is_named(tmp_path: Path) -> None:
    """Many captions, one picture: the most shown, although encoded differently now and then."""
    missing = photo(9, 64)
    files = {f"m{n}.png": encoded(missing) for n in range(5)} | {"n.bmp": encoded(missing, "BMP")}
    source = captioned(tmp_path, files | {f"x{n}.png": encoded(photo(n, 64)) for n in range(4)})
    rows = dict(inspected(source).rows())
    assert rows["most shown picture in a pass"] == (
        "'m0', 6 times (60.00% of all), as 6 images under 6 captions: a placeholder such as 'image not "
        "available'?"
    )
    assert rows["same picture again"] == "5 in 1 groups; the largest, of 6: m0, m1, m2, m3, ..."


def test_the_repeats_of_a_source_count(tmp_path: Path) -> None:
    """A picture in a folder of 10 repeats and in one of 2 is shown 12 times."""
    files = {"10_a/1.png": encoded(photo(0, 64)), "2_b/2.png": encoded(photo(0, 64))}
    rows = dict(inspected(write_folder(tmp_path, files | {"2_b/3.png": encoded(photo(1, 64))})).rows())
    shown = "'1', 12 times (85.71% of all), as 2 images under 2 captions"
    assert rows["most shown picture in a pass"] == shown
    assert rows["shown in a pass"] == "14, by the repeats of the source"


def test_repeats_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of each part those that repeat an earlier picture, also of an earlier part; counted and named."""
    caplog.set_level(logging.WARNING)
    one, two = photo(0, 128), photo(1, 128)
    lossy = encoded(two, "JPEG", quality=90)
    files = {"a.png": encoded(one), "b.png": encoded(two), "c.bmp": encoded(one, "BMP")}
    images = load_captioned(captioned(tmp_path / "x", files))
    ordinary = load_captioned(captioned(tmp_path / "y", {"o.jpg": lossy, "p.png": encoded(photo(2, 128))}))
    kept = without_repeats(images, ordinary, CaptionedImages([]))
    assert [[sample.id for sample in part.samples] for part in kept] == [["a", "b"], ["p"], []]
    assert [part.skipped for part in kept] == [{LEFT_OUT: 1}, {LEFT_OUT: 1}, {}]
    assert images.skipped == {} and kept[0].layouts == images.layouts
    for line in ("left out 'c': the same picture as 'a'", "left out 'o': nearly the same picture as 'b'"):
        assert line in caplog.messages


def test_a_damaged_image_repeats_nothing(tmp_path: Path) -> None:
    """It was whole when the data was read."""
    files = {f"{n}.png": encoded(photo(0, 64)) for n in "abc"}
    images = load_captioned(captioned(tmp_path, files))
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(damaged())
    assert pictures_of(images.samples).first.tolist() == [0, 1, 2]
