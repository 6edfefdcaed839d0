"""Folders of images: captions beside them, in one file for all, in a table, or in their folders' names."""

import json
import logging
from pathlib import Path

import pytest

from data.captioned import load_captioned
from data.sources.classes import IMAGENETTE
from data.sources.layouts import is_data
from data.sources.rows import NOT_READ
from tests.data.image_files import captions_of, encoded, noise, write_folder, write_shard

ELSEWHERE = "/fs/cml-projects/diffusion_rep/data/laion_10k_random"


def dcr(folder: Path, names: list[str], keys: list[str]) -> Path:
    """DCR's LAION-10k: images and a JSON of their captions, the alternative text before BLIP's."""
    text = {f"{ELSEWHERE}/{key}": [f"alt {key}", *(f"blip {n}" for n in range(20))] for key in keys}
    write_folder(folder, {name: noise(n) for n, name in enumerate(names)})
    write_folder(folder, {"laion_combined_captions.json": json.dumps(text)})
    return folder


def test_img2datasets_files_output(tmp_path: Path) -> None:
    """Numbered folders, with tables and counts of their own beside them, are no classes."""
    files = {"00000/000000000.jpg": noise(0, "jpeg"), "00000/000000000.txt": "zero"}
    files |= {"00001/000010000.jpg": noise(1, "jpeg"), "00001/000010000.json": '{"caption": "one"}'}
    files |= {"00000_stats.json": '{"count": 1}', "00000.parquet": "PAR1"}
    expected = {"000000000": ("zero",), "000010000": ("one",)}
    assert captions_of(write_folder(tmp_path, files)) == expected


def test_images_in_subfolders_beside_captioned_ones_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.png": encoded(), "a.txt": "a", "old/b.png": encoded(), "old/b.txt": "b"})
    images = load_captioned(str(tmp_path))
    assert len(images) == 1 and images.skipped == {"images in subfolders": 1}


def test_dcrs_laion(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The paths are another disk's. What has no partner is counted, of images and of captions."""
    caplog.set_level(logging.INFO)
    names = [f"train/images_large/{n}.png" for n in range(4)]
    dcr(tmp_path, names, [*names[:3], "train/images_large/7.png", "train/images_large/8.png"])
    images = load_captioned(str(tmp_path))
    assert [sample.id for sample in images.samples] == ["0", "1", "2"]
    assert all(len(sample.captions) == 21 for sample in images.samples)
    assert images[1].caption == "alt train/images_large/1.png" and images[1].captions[20] == "blip 19"
    assert images[1].image == noise(1)
    assert images.skipped == {"without caption": 1, "captions without image": 2}
    assert "3 of 5 captions match the 4 images" in caplog.text


@pytest.mark.parametrize("where", ["images", "images/train"])
def test_a_captions_file_elsewhere_is_named(tmp_path: Path, where: str) -> None:
    """By its path, or by its name in the folder; then it does not matter that there are two."""
    dcr(tmp_path / where, ["0.png"], ["train/0.png"])
    (tmp_path / where / "laion_combined_captions.json").rename(tmp_path / "c.json")
    expected = {"0": ("alt train/0.png", *(f"blip {n}" for n in range(20)))}
    assert captions_of(f"{tmp_path / where}?captions={tmp_path / 'c.json'}") == expected
    for name in ("c.json", "d.json"):
        (tmp_path / where / name).write_bytes((tmp_path / "c.json").read_bytes())
    with pytest.raises(ValueError, match="2 captions files, c.json, d.json: name one"):
        load_captioned(str(tmp_path / where))
    assert captions_of(f"{tmp_path / where}?captions=c.json") == expected
    with pytest.raises(FileNotFoundError, match="no captions file 'e.json'"):
        load_captioned(f"{tmp_path / where}?captions=e.json")


def test_an_ambiguous_name_needs_a_longer_tail(tmp_path: Path) -> None:
    """Of three 0.png, two have partners in folders of the same name; the third is not given what is left."""
    images = ["a/0.png", "b/0.png", "c/0.png", "c/1.png"]
    dcr(tmp_path, images, ["x/a/0.png", "x/b/0.png", "x/d/0.png", "x/d/1.png"])
    read = {key: each[0] for key, each in captions_of(tmp_path).items()}
    assert read == {"a_0": "alt x/a/0.png", "b_0": "alt x/b/0.png", "1": "alt x/d/1.png"}


def test_captions_of_other_images_are_refused(tmp_path: Path) -> None:
    """Also a file that is named and holds something else."""
    dcr(tmp_path, ["0.png"], ["1.png", "2.png"])
    with pytest.raises(ValueError, match="none of its 2 paths, such as '/fs/.*/1.png'"):
        load_captioned(str(tmp_path))
    write_folder(tmp_path, {"other.json": '{"epochs": 3}'})
    with pytest.raises(ValueError, match="no captions file"):
        load_captioned(f"{tmp_path}?captions=other.json")


def test_captions_that_are_no_text(tmp_path: Path) -> None:
    """A list keeps what is text in it."""
    write_folder(tmp_path, {f"{n}.png": noise(n) for n in range(4)})
    text = {"/x/0.png": ["one", None, 3, " ", "two"], "/x/1.png": [], "/x/2.png": [3], "/x/3.png": "three"}
    write_folder(tmp_path, {"captions.json": json.dumps(text)})
    images = load_captioned(str(tmp_path))
    assert {sample.id: sample.captions for sample in images.samples} == {"0": ("one", "two"), "3": ("three",)}
    assert images.skipped == {"without caption": 1, "captions that are no text": 1}


def imagenette(folder: Path, split: str) -> None:
    for number, wordnet in enumerate(IMAGENETTE):
        name = f"{split}/{wordnet}/{wordnet}_{number if split == 'train' else 1000 + number}.JPEG"
        write_folder(folder, {name: noise(number, "jpeg")})


def test_imagenette(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The archive's folder means its train; val is read by its own path."""
    for split in ("train", "val"):
        imagenette(tmp_path, split)
    write_folder(tmp_path, {"noisy_imagenette.csv": "path,noisy_labels_0\n"})
    read = captions_of(tmp_path)
    assert read == captions_of(tmp_path / "train") and "only its folder 'train' is read" in caplog.text
    assert len(read) == 10
    assert {sample.label for sample in load_captioned(str(tmp_path)).samples} == set(IMAGENETTE.values())
    assert read["n01440764_0"] == ("An image of tench",) and read["n03394916_5"] == (
        "An image of French horn",
    )
    assert set(captions_of(tmp_path / "val")).isdisjoint(read)


def test_other_class_folders(tmp_path: Path) -> None:
    """Named in words; files of one name in several classes have ids of their own; a class may be `train`."""
    names = ("golf_ball/1.png", "train/1.png", "train/2.png")
    write_folder(tmp_path, {name: noise(n) for n, name in enumerate(names)})
    expected = {"golf_ball_1": "golf ball", "train_1": "train", "2": "train"}
    assert captions_of(tmp_path) == {key: (f"An image of {name}",) for key, name in expected.items()}
    assert {sample.id: sample.label for sample in load_captioned(str(tmp_path)).samples} == expected


def test_a_single_folder_is_no_class(tmp_path: Path) -> None:
    """More likely its captions are missing."""
    write_folder(tmp_path, {"images_large/1.png": encoded()})
    with pytest.raises(ValueError, match=r"images in 'images_large' and no captions: .*\?captions=FILE"):
        load_captioned(str(tmp_path))


def test_metadata_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    """Neither upwards nor by an absolute path."""
    write_folder(tmp_path, {"secret.png": encoded(), "data/a.png": encoded()})
    names = ("../secret.png", str(tmp_path / "secret.png"), "./a.png")
    rows = "".join(json.dumps({"file_name": name, "text": "x"}) + "\n" for name in names)
    write_folder(tmp_path, {"data/metadata.jsonl": rows})
    images = load_captioned(str(tmp_path / "data"))
    assert [sample.id for sample in images.samples] == ["a"]
    assert images.skipped == {"without image": 2}


def test_options_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    """By name, with those that do."""
    shard = write_shard(tmp_path / "a.tar", "x")
    write_folder(tmp_path / "folder", {"a.png": encoded(), "a.txt": "a"})
    for source in (f"{shard}?split=train", f"{tmp_path}?split=train", f"{tmp_path / 'folder'}?color=red"):
        with pytest.raises(ValueError, match="no option '(split|color)' here"):
            load_captioned(source)
    with pytest.raises(ValueError, match="'captions' has no value"):
        load_captioned(f"{tmp_path / 'folder'}?captions=")
    assert list(captions_of(tmp_path / "?.tar")) == ["x"]  # a glob is no option


def test_what_could_be_read_is_told_from_what_could_not(tmp_path: Path) -> None:
    write_folder(tmp_path, {"run/config.yaml": "a: 1", "images/a.png": encoded()})
    assert is_data(str(tmp_path / "images")) and is_data("hf:owner/name") is True
    assert not is_data(str(tmp_path / "run")) and not is_data(str(tmp_path / "gone"))


def test_metadata_in_subfolders(tmp_path: Path) -> None:
    """Names in it start from its own folder, and do not lead out of it."""
    files: dict[str, bytes | str] = {f"{n}/a.png": noise(n) for n in range(2)}
    files["0/metadata.jsonl"] = json.dumps({"file_name": "a.png", "text": "zero"})
    files["0/metadata.csv"] = "file_name,text\na.png,old\n"
    files["1/metadata.csv"] = "file_name,caption\na.png,one\n../0/a.png,other\n"
    images = load_captioned(write_folder(tmp_path, files))
    assert {sample.id: sample.captions for sample in images.samples} == {"0_a": ("zero",), "1_a": ("one",)}
    assert images.skipped == {"without image": 1, "metadata tables": 1}


def test_metadata_of_splits(tmp_path: Path) -> None:
    """Of the folders `train` and `test` the first is read, with its own table."""
    files: dict[str, bytes | str] = {f"{name}/a.png": encoded() for name in ("train", "test")}
    files |= {f"{name}/metadata.csv": f"file_name,text\na.png,{name}\n" for name in ("train", "test")}
    assert captions_of(write_folder(tmp_path, files)) == {"a": ("train",)}


def test_metadata_with_too_many_fields_is_named(tmp_path: Path) -> None:
    """A comma without quotes."""
    write_folder(
        tmp_path, {"a.png": encoded(), "metadata.csv": "file_name,text\na.png,one\nb.png,one, two\n"}
    )
    with pytest.raises(
        ValueError, match=r"metadata.csv cannot be read: line 3 has more fields than the header"
    ):
        load_captioned(str(tmp_path))


def test_an_image_on_several_rows_of_metadata(tmp_path: Path) -> None:
    """Each row is a caption of it, and one that repeats is one."""
    rows = [
        ("a.png", "one"), ("b.png", None), ("./a.png", ["two", "three"]), ("a.png", "one"), ("b.png", None),
    ]  # fmt: skip
    table = "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows)
    images = load_captioned(
        write_folder(tmp_path, {"a.png": noise(0), "b.png": noise(1), "metadata.jsonl": table})
    )
    assert [(sample.id, sample.captions) for sample in images.samples] == [("a", ("one", "two", "three"))]
    assert images.skipped == {"without caption": 1}


def test_caption_files_of_other_trainers_are_read(tmp_path: Path) -> None:
    files = {"1.png": noise(0), "1.caption": "a", "2.PNG": noise(1), "2.TXT": "b"}
    assert captions_of(write_folder(tmp_path, files)) == {"1": ("a",), "2": ("b",)}


@pytest.mark.parametrize("name", ["00000", "images", "2024 01"])
def test_doubtful_classes_are_named_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    load_captioned(write_folder(tmp_path, {f"{name}/1.png": noise(0), "x/2.png": noise(1)}))
    assert f"NO CAPTIONS FOUND: captions made of folder names, such as 'An image of {name}'" in caplog.text


def test_what_a_layout_leaves_aside_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {"x.png": noise(0), "y.tiff": b"", "sub/z.png": noise(1)}
    source = write_folder(tmp_path, files)
    write_shard(tmp_path / "0.tar", "a")
    write_shard(tmp_path / "sub/1.tar", "b")
    images = load_captioned(source)
    assert images.skipped == {"images beside shards": 2, "shards in subfolders": 1, NOT_READ: 1}
    assert "1 shards in subfolders, such as" in caplog.text and "sub/1.tar" in caplog.text


@pytest.mark.parametrize("files, reason, name", [
    ({"a.txt": "a", "sub/b.png": noise(1)}, "images in subfolders", "sub/b.png"),
    ({"a.txt": "a", "b.txt": "b"}, "captions without image", "b.txt"),
    ({"a.txt": "a", "more.zip": b"PK"}, "archives that are not read", "more.zip"),
    ({"metadata.csv": "file_name,text\na.png,a", "b.png": noise(1)}, "without caption", "b.png"),
    ({"c.json": '{"a.png": "a"}', "b.png": noise(1)}, "without caption", "b.png"),
    ({"c.json": '{"a.png": "a", "b.png": "b"}'}, "captions without image", "b.png"),
])  # fmt: skip
def test_what_is_left_aside_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, files: dict, reason: str, name: str
) -> None:
    images = load_captioned(write_folder(tmp_path, {"a.png": noise(0)} | files))
    assert len(images) == 1 and images.skipped == {reason: 1}
    assert any(f"not used: 1 {reason}" in line and f"{name}'" in line for line in caplog.messages)


@pytest.mark.parametrize("text, expected", [
    ("Löwe".encode("utf-16"), "Löwe"), ("ein Löwe".encode("latin-1"), None),
    ("猫がいる".encode("shift-jis"), None), ("a lion".encode("utf-16-le"), None),
    ('{"caption": "Löwe"}'.encode("utf-16"), "Löwe"), ('{"caption": "Löwe"}'.encode("latin-1"), None),
])  # fmt: skip
def test_captions_that_are_no_utf8(tmp_path: Path, text: bytes, expected: str | None) -> None:
    """Decoded where a mark says so, else left out; a null character shows UTF-16 without a mark."""
    beside = "a.json" if "{" in text.decode("latin-1") else "a.txt"
    files = {"a.png": noise(0), beside: text, "b.png": noise(1), "b.txt": "b"}
    images = load_captioned(write_folder(tmp_path, files))
    assert [sample.caption for sample in images.samples] == [*filter(None, [expected]), "b"]
    assert images.skipped == ({} if expected else {"captions that are not UTF-8": 1})
