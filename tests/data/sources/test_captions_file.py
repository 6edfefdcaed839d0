"""One captions file for shards and tables: other captions than their own, by key."""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.captioned import load_captioned
from data.prompts import load_prompts
from data.prompts.fingerprint import source_fingerprint
from tests.data.image_files import captions_of, noise, write_folder, write_shard, write_tar

BLIP = [f"blip {n}" for n in range(19)]


def recaptioned(folder: Path, content: dict | list) -> Path:
    write_folder(folder, {"blip.json": json.dumps(content)})
    return folder / "blip.json"


def test_recaptioned_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pattern or a folder. What the file lacks keeps its own caption, what the shards lack is counted."""
    caplog.set_level(logging.INFO)
    (tmp_path / "shards").mkdir()
    for number, ids in enumerate(("ab", "cd")):
        write_shard(tmp_path / f"shards/0000{number}.tar", ids)
    file = recaptioned(tmp_path, {"a": ["alt a", *BLIP], "d": "one", "gone": ["x"]})
    expected = {"a": ("alt a", *BLIP), "b": ("a b",), "c": ("a c",), "d": ("one",)}
    images = load_captioned(f"{tmp_path}/shards/{{00000..00001}}.tar?captions={file}")
    assert {sample.id: sample.captions for sample in images.samples} == expected
    assert images[0].caption == "alt a" and images.skipped == {"captions without image": 1}
    assert "blip.json: 2 of 3 captions match the 4 images" in caplog.text
    assert captions_of(f"{tmp_path}/shards?captions={file}") == expected
    file.rename(tmp_path / "shards/blip.json")
    assert captions_of(f"{tmp_path}/shards?captions=blip.json") == expected


def test_an_image_without_a_caption_of_its_own_gets_one(tmp_path: Path) -> None:
    """An empty list in the file leaves an image without any."""
    files = {"a.png": noise(0), "b.png": noise(1), "c.png": noise(2), "c.txt": b"own"}
    shard = write_tar(tmp_path / "s.tar", files)
    images = load_captioned(f"{shard}?captions={recaptioned(tmp_path, {'a': ['x'], 'c': []})}")
    assert [sample.caption for sample in images.samples] == ["x"]
    assert images.skipped == {"without caption": 2}


@pytest.mark.parametrize("images", ["shard", "folder"])
def test_values_that_are_no_captions_are_counted(tmp_path: Path, images: str) -> None:
    """In a file that was named, beside others that are; null is no caption."""
    if images == "shard":
        source, key = write_shard(tmp_path / "s.tar", "abcd"), "{}"
    else:
        source, key = (
            write_folder(tmp_path / "x", {f"{name}.png": noise(ord(name)) for name in "abcd"}),
            "/y/{}.png",
        )
    content = {"a": None, "b": 3, "c": {"text": "x"}, "d": ["new"]}
    file = recaptioned(tmp_path, {key.format(name): value for name, value in content.items()})
    read = load_captioned(f"{source}?captions={file}")
    assert [(sample.id, sample.caption) for sample in read.samples] == [("d", "new")]
    assert read.skipped == {"without caption": 1, "captions that are no text": 2}


def test_a_folder_does_not_take_such_a_file_by_itself(tmp_path: Path) -> None:
    """It may be anything about the images."""
    source = write_folder(tmp_path, {"a.png": noise(0), "b.png": noise(1), "b.txt": "own"})
    recaptioned(tmp_path, {"a.png": ["new"], "b.png": 3})
    assert captions_of(source) == {"b": ("own",)}


def test_keys_are_compared_as_file_names(tmp_path: Path) -> None:
    """As ids are, before a prefix; two that would be one id are refused."""
    shard = write_tar(tmp_path / "s.tar", {"x/a.png": noise(0), "x/a.txt": b"own"})
    source = f"{shard}?captions={recaptioned(tmp_path, {'x/a': ['new']})}"
    assert captions_of(f"{source}&prefix=p_") == {"p_x_a": ("new",)}
    recaptioned(tmp_path, {"x/a": ["new"], "x_a": ["old"]})
    with pytest.raises(ValueError, match="1 of its keys are the same as others"):
        load_captioned(source)


def test_recaptioned_tables(tmp_path: Path) -> None:
    """By their column of ids; then no column of captions is needed."""
    columns = {"image": [noise(0), noise(1)], "key": ["a", "b"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    file = recaptioned(tmp_path, {"a": ["alt", *BLIP]})
    images = load_captioned(f"{tmp_path}/t.parquet?captions={file}")
    assert [sample.captions for sample in images.samples] == [("alt", *BLIP)]
    assert images.skipped == {"without caption": 1}
    pq.write_table(pa.table(columns | {"text": ["own", "own"]}), tmp_path / "t.parquet")
    for source in (f"{tmp_path}/t.parquet", str(tmp_path)):
        assert captions_of(f"{source}?captions={file}&image=image") == {"a": ("alt", *BLIP), "b": ("own",)}


def test_a_recaptioned_saved_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.Dataset.from_dict({"image": [{"bytes": noise(0), "path": None}], "text": ["own"]})
    rows.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "cats")
    file = recaptioned(tmp_path, {"cats_0000000": ["new"]})
    assert captions_of(f"{tmp_path}/cats?captions={file}") == {"cats_0000000": ("new",)}


def test_a_folder_of_images_with_an_archive_of_them_is_still_matched_by_path(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train/0.png": noise(0), "c.json": json.dumps({"/far/train/0.png": ["a"]})})
    write_shard(tmp_path / "images.tar", "x")
    assert captions_of(f"{tmp_path}?captions=c.json") == {"0": ("a",)}


def test_prompts_are_the_new_captions(tmp_path: Path) -> None:
    """And their fingerprint knows the file."""
    source = (
        f"{write_shard(tmp_path / 's.tar', 'x')}?captions={recaptioned(tmp_path, {'x': ['new', 'other']})}"
    )
    assert [(prompt.id, prompt.text) for prompt in load_prompts(source)] == [("x", "new")]
    before = source_fingerprint(source)
    recaptioned(tmp_path, {"x": ["newer"]})
    assert source_fingerprint(source) != before


def coco(folder: Path, **annotation: object) -> Path:
    """`captions_val2017.json` as COCO publishes it; one caption is of an image that is not there."""
    names = {397133: "000000397133.jpg", 37777: "000000037777.jpg"}
    content = {
        "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
        "licenses": [{"url": "http://creativecommons.org/licenses/by-nc-sa/2.0/", "id": 1, "name": "x"}],
        "images": [
            {"license": 1, "file_name": name, "height": 48, "width": 48, "id": key}
            for key, name in names.items()
        ],
        "annotations": [
            {"image_id": key, "id": number, "caption": text}
            for number, (key, text) in enumerate(
                [(397133, "A man cooks.\n"), (37777, "A kitchen."), (397133, "A chef."), (5, "Nothing.")]
            )
        ],
    }
    if annotation:
        content["annotations"] = [annotation]
    (folder / "annotations").mkdir(exist_ok=True)
    path = folder / "annotations/captions_val2017.json"
    path.write_text(json.dumps(content))
    return path


COCO = {"000000397133": ("A man cooks.", "A chef."), "000000037777": ("A kitchen.",)}


def test_cocos_captions(tmp_path: Path) -> None:
    """All captions of an image; named from where the archives unpack it, or beside the images."""
    source = write_folder(
        tmp_path / "val2017", {f"{name}.jpg": noise(n, "jpeg") for n, name in enumerate(COCO)}
    )
    file = coco(tmp_path)
    images = load_captioned(f"{source}?captions={file}")
    assert {sample.id: sample.captions for sample in images.samples} == COCO
    assert images.skipped == {"captions without image": 1}
    content = json.loads(file.read_text())
    content["annotations"].pop()
    (tmp_path / "val2017/captions.json").write_text(json.dumps(content))
    assert captions_of(source) == COCO


def test_cocos_captions_of_shards(tmp_path: Path) -> None:
    """Whose keys are the names without suffix; as are those of another file of names."""
    shard = write_tar(tmp_path / "s.tar", {f"{name}.jpg": noise(n, "jpeg") for n, name in enumerate(COCO)})
    file = coco(tmp_path)
    file.write_text(file.read_text().replace(', {"image_id": 5, "id": 3, "caption": "Nothing."}', ""))
    assert captions_of(f"{shard}?captions={file}") == COCO
    named = recaptioned(tmp_path, {"000000397133.jpg": "one"})
    assert captions_of(f"{shard}?captions={named}") == {"000000397133": ("one",)}


def test_cocos_other_annotations_are_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", "x")
    file = coco(tmp_path, image_id=37777, id=1, category_id=3, bbox=[0, 0, 4, 4])
    with pytest.raises(ValueError, match="one of COCO's files, but not of captions: give its captions_"):
        load_captioned(f"{shard}?captions={file}")
