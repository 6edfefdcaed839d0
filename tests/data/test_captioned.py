"""Reading captioned images: every form they come in, and what is done about what is broken."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.captioned import Sample, load_captioned
from tests.data.image_files import encoded, noise, write_folder, write_shard


@pytest.mark.parametrize("sources", [["{a,b}.tar", "c.tar.gz"], ["*.tar", "*.tar.gz"], ["."]])
def test_shards_are_found_by_braces_globs_and_folder(tmp_path: Path, sources: list[str]) -> None:
    """Plain and gzipped, in the order of their names; files that are no shards do not matter."""
    for name, ids in (("c.tar.gz", "z"), ("b.tar", "y"), ("a.tar", "wx")):
        write_shard(tmp_path / name, ids)
    write_folder(tmp_path, {"licence.txt": "free", "a.parquet": "PAR1"})
    images = load_captioned(*(str(tmp_path / source) for source in sources))
    assert [(sample.id, sample.caption) for sample in images.samples] == [(i, f"a {i}") for i in "wxyz"]
    assert not images.skipped
    assert images.position["z"] == 3


def test_a_folder_with_a_caption_beside_each_image(tmp_path: Path) -> None:
    """Any suffix in any case; samples without caption are counted, unreadable images too."""
    files = {"b.PNG": encoded(), "b.txt": " a dog\n", "a.jpg": encoded(form="jpeg"), "a.txt": "ein Löwe"}
    lost = {"c.png": encoded(), "d.png": encoded(), "d.txt": " ", "e.png": b"not an image", "e.txt": "noise"}
    images = load_captioned(write_folder(tmp_path, files | lost))
    assert [(sample.id, sample.caption) for sample in images.samples] == [("a", "ein Löwe"), ("b", "a dog")]
    assert images.skipped == {"without caption": 2, "unreadable images": 1}


@pytest.mark.parametrize("field", ["text", "caption"])
def test_a_folder_with_metadata(tmp_path: Path, field: str) -> None:
    """Images may lie deeper; rows without image and images without row are not lost silently."""
    captions = {"test_1.png": "one", "sub/2.png": "two", "gone.png": "three", "4.png": None}
    rows = "".join(json.dumps({"file_name": name, field: text}) + "\n" for name, text in captions.items())
    files = {name: encoded() for name in ("test_1.png", "sub/2.png", "4.png", "unlisted.png")}
    images = load_captioned(write_folder(tmp_path, files | {"metadata.jsonl": rows}))
    assert {sample.id: sample.caption for sample in images.samples} == {"test_1": "one", "2": "two"}
    assert images.skipped == {"without image": 1, "without caption": 2}


def test_metadata_without_captions_is_refused(tmp_path: Path) -> None:
    """The error names the fields there are."""
    source = write_folder(
        tmp_path, {"a.png": encoded(), "metadata.jsonl": '{"file_name": "a.png", "title": "x"}'}
    )
    with pytest.raises(ValueError, match="title"):
        load_captioned(source)


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    """Training on nothing would go wrong later and less clearly. What is there, and what is lost, is said."""
    shows = "; `python -m data inspect SOURCE` shows what is there"
    with pytest.raises(ValueError) as error:
        load_captioned(str(tmp_path))
    assert str(error.value) == f"no captioned image in {tmp_path}: nothing that can be read{shows}"
    one = write_folder(tmp_path / "one", {"a.png": encoded(), "b.png": b"none", "b.txt": "b"})
    two = write_folder(tmp_path / "two", {"c.png": encoded()})
    with pytest.raises(ValueError) as error:
        load_captioned(one, two)
    lost = "1 unreadable images, 2 without caption"
    assert str(error.value) == f"no captioned image in {one}, {two}: {lost}{shows}"


@pytest.mark.parametrize("source", ["nowhere", "none-*.tar", "{a,b}.tar"])
def test_a_missing_source_is_an_error(tmp_path: Path, source: str) -> None:
    """Also where one of several named shards is missing."""
    write_shard(tmp_path / "a.tar", "x")
    with pytest.raises(FileNotFoundError, match="nowhere|none|b.tar"):
        load_captioned(str(tmp_path / source))


def test_an_id_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    """Ids name the images of a run and count exposures."""
    write_shard(tmp_path / "a.tar", "xy")
    write_shard(tmp_path / "b.tar", "yz")
    with pytest.raises(ValueError, match="'y'"):
        load_captioned(str(tmp_path))


def test_an_image_is_fitted_on_its_short_side_and_cropped() -> None:
    """Of three squares in a row the middle one stays."""
    image = Image.new("RGB", (96, 32), "red")
    image.paste("lime", (32, 0, 64, 32))
    sample = Sample("a", encoded(image), "")
    assert sample.rgb().size == (96, 32)
    pixels = sample.pixels(16)
    assert pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8
    assert np.array_equal(pixels[:, 8, 8], [0, 255, 0]) and pixels[1].min() > 200


def test_only_the_first_of_many_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log does not drown."""
    files = {f"{number}.png": b"none" for number in range(30)} | {f"{n}.txt": "a" for n in range(30)}
    load_captioned(write_folder(tmp_path, files | {"a.png": encoded(), "a.txt": "a"}))
    assert caplog.text.count("unreadable images: cannot identify") == 5
    assert "30 unreadable images" in caplog.text


def test_captions_are_text_that_a_file_can_hold(tmp_path: Path) -> None:
    """Half a surrogate, which JSON can say, would stop training at its first report; a mark of order goes."""
    described = {
        f"/x/{name}.png": [text]
        for name, text in (("a", "a \ud83d dog"), ("b", "dog \ud83d"), ("c", "\U0001f600"))
    }
    images = {f"{name}.png": noise(ord(name)) for name in "abc"}
    source = write_folder(tmp_path / "json", images | {"captions.json": json.dumps(described)})
    assert [sample.caption for sample in load_captioned(source).samples] == [
        "a \ufffd dog",
        "dog \ufffd",
        "\U0001f600",
    ]
    source = write_folder(tmp_path / "txt", {"a.png": encoded(), "a.txt": "\ufeffa cat"})
    assert load_captioned(source)[0].caption == "a cat"
