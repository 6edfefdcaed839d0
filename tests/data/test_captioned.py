"""Reading captioned images: every form they come in, and what is done about what is broken."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.captioned import Sample, load_captioned
from data.prompts import safe_id
from data.sources.rows import file_id
from tests.data.image_files import encoded, noise, write_folder, write_shard, write_tar


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


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("kept", [0.3, 0.5, 0.7])
def test_a_cut_shard_gives_what_it_held_before_the_cut(tmp_path: Path, suffix: str, kept: float) -> None:
    """And is counted once; the next shard is read."""
    cut = write_shard(tmp_path / f"a.{suffix}", "abcdefgh")
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * kept)])
    write_shard(tmp_path / "b.tar", "z")
    images = load_captioned(str(tmp_path))
    *before, last = [sample.id for sample in images.samples]
    assert last == "z"
    assert 0 < len(before) < 8 and before == list("abcdefgh"[: len(before)])
    assert images.skipped["broken shards"] == 1
    assert "1 broken shards" in images.report()


def test_a_shard_cut_between_two_samples_counts_as_broken(tmp_path: Path) -> None:
    """There tarfile sees an ordinary end."""
    cut = write_shard(tmp_path / "a.tar", "abcd")
    with tarfile.open(cut) as archive:
        offset = archive.getmember("c.png").offset
    cut.write_bytes(cut.read_bytes()[:offset])
    images = load_captioned(str(cut))
    assert [sample.id for sample in images.samples] == ["a", "b"]
    assert images.skipped == {"broken shards": 1}


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


def test_samples_of_a_shard_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    """Each under its reason; a JPEG cut short counts as unreadable, though its header is fine."""
    jpeg = noise(0, "jpeg")
    samples = {"a.jpg": jpeg, "a.txt": b"noise", "b.png": encoded(), "c.txt": b"no image"}
    broken = {"d.jpg": jpeg[: len(jpeg) // 2], "d.txt": b"half", "e.webp": b"RIFF", "e.txt": b"none"}
    images = load_captioned(str(write_tar(tmp_path / "a.tar", samples | broken)))
    assert [sample.id for sample in images.samples] == ["a"]
    assert images.skipped == {"without caption": 1, "without image": 1, "unreadable images": 2}


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    """Training on nothing would go wrong later and less clearly. What is there, and what is lost, is said."""
    shows = "; `python -m data inspect SOURCE` shows what is there"
    with pytest.raises(ValueError) as told:
        load_captioned(str(tmp_path))
    assert str(told.value) == f"no captioned image in {tmp_path}: nothing that can be read{shows}"
    one = write_folder(tmp_path / "one", {"a.png": encoded(), "b.png": b"none", "b.txt": "b"})
    two = write_folder(tmp_path / "two", {"c.png": encoded()})
    with pytest.raises(ValueError) as told:
        load_captioned(one, two)
    lost = "1 unreadable images, 2 without caption"
    assert str(told.value) == f"no captioned image in {one}, {two}: {lost}{shows}"


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


@pytest.mark.parametrize(
    "color, seen", [((255, 0, 0, 128), (255, 127, 127)), ((0, 0, 0, 0), (255, 255, 255))]
)
def test_transparency_becomes_white(color: tuple, seen: tuple) -> None:
    """Half-transparent red is pink, and fully transparent black is white."""
    assert Sample("a", encoded(Image.new("RGBA", (8, 8), color)), "").rgb().getpixel((0, 0)) == seen


def test_an_image_is_fitted_on_its_short_side_and_cropped() -> None:
    """Of three squares in a row the middle one stays."""
    image = Image.new("RGB", (96, 32), "red")
    image.paste("lime", (32, 0, 64, 32))
    sample = Sample("a", encoded(image), "")
    assert sample.rgb().size == (96, 32)
    pixels = sample.pixels(16)
    assert pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8
    assert np.array_equal(pixels[:, 8, 8], [0, 255, 0]) and pixels[1].min() > 200


def test_all_captions_of_an_image_come_with_it() -> None:
    """The first is the caption; one that is made of three values has just that."""
    assert Sample("a", b"", "one").captions == ("one",)
    assert Sample("a", b"", "one", ("one", "two")).captions == ("one", "two")
    assert Sample("a", b"", "one").label is None


def test_a_shard_without_txt_takes_the_caption_from_its_json(tmp_path: Path) -> None:
    """What is no text, or no JSON, is no caption; a `.txt` counts before it, though empty."""
    described = {"a": b'{"caption": "a dog"}', "b": b'{"caption": 7}', "c": b"{", "d": b'{"caption": null}'}
    files = {f"{key}.jpg": noise(ord(key), "jpeg") for key in "abcde"}
    files |= {f"{key}.json": content for key, content in described.items()}
    files |= {"e.json": b'{"caption": "no"}', "e.txt": b""}
    images = load_captioned(str(write_tar(tmp_path / "a.tar", dict(sorted(files.items())))))
    assert [(sample.id, sample.caption) for sample in images.samples] == [("a", "a dog")]
    assert images.skipped == {"captions that are no text": 1, "without caption": 3}


def test_names_in_a_shard_become_safe_ids(tmp_path: Path) -> None:
    """They would name files later."""
    long = "x" * 90
    files: dict[str, bytes] = {}
    for number, key in enumerate(("/abs/1", "sub\\2", f"{long}/{long}")):
        files |= {f"{key}.png": noise(number), f"{key}.txt": b"a"}
    ids = [sample.id for sample in load_captioned(str(write_tar(tmp_path / "a.tar", files))).samples]
    assert ids[:2] == ["abs_1", "sub_2"]
    assert len(ids[2]) < 120 and "/" not in ids[2]
    assert file_id("../../etc/passwd") == "etc_passwd"
    assert safe_id(file_id("..")) and safe_id(file_id("")) and file_id("..") != file_id("")


def test_a_shard_is_never_run_as_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset runs what follows `pipe:`."""
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "pipe:touch run; cat .tar", "a")
    assert len(load_captioned(".")) == 1
    assert not (tmp_path / "run").exists()


def test_one_unreadable_image_among_a_thousand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is counted, and named in the log; the others are read."""
    files: dict[str, bytes] = {}
    for number in range(1000):
        image = encoded(Image.new("RGB", (4, 4), (number % 256, number // 256, 0)))
        files |= {f"{number:05d}.png": image if number != 617 else image[:40], f"{number:05d}.txt": b"a"}
    images = load_captioned(str(write_tar(tmp_path / "a.tar", files)))
    assert len(images) == 999
    assert images.skipped == {"unreadable images": 1}
    assert "'00617': unreadable images" in caplog.text


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


def test_formats_in_a_shard(tmp_path: Path) -> None:
    """Every one that folders have; of two images of a sample the JPEG counts before the GIF."""
    files = {"a.gif": noise(0, "gif"), "a.txt": b"a", "b.gif": noise(1, "gif"), "b.jpg": noise(2, "jpeg")}
    images = load_captioned(str(write_tar(tmp_path / "a.tar", files | {"b.txt": b"b"})))
    assert [sample.image for sample in images.samples] == [noise(0, "gif"), noise(2, "jpeg")]
