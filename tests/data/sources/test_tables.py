"""Hugging Face datasets and parquet files with the images in them."""

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.captioned import CaptionedImages, load_captioned
from tests.data.image_files import noise, write_folder, write_shard


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what `datasets` caches out of the home directory."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    return folder


def table(count: int = 3, start: int = 0, **columns: list) -> datasets.Dataset:
    """Images as Hugging Face keeps them, encoded, beside other columns."""
    images = [{"bytes": noise(start + n), "path": f"{n}.png"} for n in range(count)]
    return datasets.Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image())


def pairs(images: CaptionedImages) -> list[tuple[str, tuple[str, ...]]]:
    return [(sample.id, sample.captions) for sample in images.samples]


def test_a_saved_dataset(tmp_path: Path) -> None:
    """The bytes are those that were saved; rows are named by number, or by their own ids."""
    table(text=["a", "b", "c"]).save_to_disk(tmp_path / "cats")
    images = load_captioned(str(tmp_path / "cats"))
    assert pairs(images) == [(f"cats_{n:07d}", (text,)) for n, text in enumerate("abc")]
    assert [sample.image for sample in images.samples] == [noise(n) for n in range(3)]
    table(text=["a", "b", "c"], id=[7, 8, 9]).save_to_disk(tmp_path / "dogs")
    assert [key for key, _ in pairs(load_captioned(str(tmp_path / "dogs")))] == ["7", "8", "9"]


def test_saved_splits(tmp_path: Path) -> None:
    """Train unless another is named."""
    splits = {"train": table(text=["a", "b", "c"]), "test": table(1, 5, text=["z"])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    assert len(load_captioned(str(tmp_path))) == 3
    assert [each for _, each in pairs(load_captioned(f"{tmp_path}?split=test"))] == [("z",)]
    with pytest.raises(ValueError, match=r"no split 'val': .* \['test', 'train'\]"):
        load_captioned(f"{tmp_path}?split=val")


def test_a_broken_saved_dataset_is_one_line(tmp_path: Path) -> None:
    table(text=["a", "b", "c"]).save_to_disk(tmp_path)
    next(tmp_path.glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match="no whole dataset of save_to_disk"):
        load_captioned(str(tmp_path))


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_parquet_as_the_hub_has_it(tmp_path: Path, column: str) -> None:
    """In `data/`, split by names: the train files, in their order; a single split is taken whatever it is."""
    (tmp_path / "data").mkdir()
    for number in range(2):
        rows = table(2, 2 * number, **{column: [f"{number} a", f"{number} b"]})
        rows.to_parquet(tmp_path / f"data/train-0000{number}-of-00002.parquet")
    table(1, 9, **{column: ["z"]}).to_parquet(tmp_path / "data/test-00000-of-00001.parquet")
    write_folder(tmp_path, {"README.md": "a card", "thumbnail.png": noise(50)})
    images = load_captioned(str(tmp_path))
    assert [sample.caption for sample in images.samples] == ["0 a", "0 b", "1 a", "1 b"]
    assert images[3].image == noise(3) and images[3].id == "train-00001-of-00002_0000001"
    assert [each for _, each in pairs(load_captioned(f"{tmp_path}?split=test"))] == [("z",)]
    assert len(load_captioned(f"{tmp_path}/data/t*.parquet?split=test")) == 1


def test_img2datasets_parquet_output(tmp_path: Path) -> None:
    """Plain bytes in a column named after the format; failed rows have none."""
    columns = {"jpg": [noise(0, "jpeg"), None], "caption": ["a", "b"], "key": ["000000000", "000000001"]}
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    images = load_captioned(str(tmp_path / "{00000..00000}.parquet"))
    assert pairs(images) == [("000000000", ("a",))] and images.skipped == {"without image": 1}


def test_columns_are_given_by_name(tmp_path: Path) -> None:
    """Where they have other names, or there are several; a list is all captions of an image."""
    captions = [["a", "b"], ["c"], None]
    rows = table(titles=captions, source_url=["http://a/1.png", "http://a/2.png", "x"])
    rows = rows.rename_column("image", "before").add_column("after", [noise(n + 10) for n in range(3)])
    rows.to_parquet(tmp_path / "a.parquet")
    source = f"{tmp_path}/a.parquet"
    with pytest.raises(ValueError, match="which column is the image.*'before', 'titles'"):
        load_captioned(source)
    with pytest.raises(ValueError, match="which column is the caption"):
        load_captioned(f"{source}?image=before")
    with pytest.raises(ValueError, match="'titles' holds no images"):
        load_captioned(f"{source}?image=titles&caption=titles")
    with pytest.raises(ValueError, match="no column 'x'"):
        load_captioned(f"{source}?image=x")
    images = load_captioned(f"{source}?image=after&caption=titles&id=source_url")
    assert pairs(images) == [("http:_a_1.png", ("a", "b")), ("http:_a_2.png", ("c",))]
    assert images[0].image == noise(10) and images.skipped == {"without caption": 1}


def test_ids_that_repeat(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A guessed column gives way to row numbers; a given one is the user's error."""
    table(text=["a", "b", "c"], id=[1, 1, 2]).to_parquet(tmp_path / "a.parquet")
    images = load_captioned(str(tmp_path))
    assert [key for key, _ in pairs(images)] == [f"a_{n:07d}" for n in range(3)]
    assert "'id' repeats" in caplog.text
    with pytest.raises(ValueError, match="1 ids are repeated"):
        load_captioned(f"{tmp_path}?id=id")


def test_captions_that_are_numbers(tmp_path: Path) -> None:
    table(text=[1.5, float("nan"), None]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="2 captions that are no text, 1 without caption"):
        load_captioned(str(tmp_path))


def test_paths_in_a_table_are_not_followed(tmp_path: Path) -> None:
    """Anybody may have written them."""
    write_folder(tmp_path, {"secret.png": noise(0)})
    images = pa.array(
        [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": noise(1), "path": None}]
    )
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": images, "text": ["a", "b"]}), tmp_path / "data/a.parquet")
    images = load_captioned(str(tmp_path / "data"))
    assert [sample.image for sample in images.samples] == [noise(1)]
    assert images.skipped == {"without image": 1}


def test_a_cut_parquet_file_is_named(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        table(text=["a", "b", "c"]).to_parquet(tmp_path / name)
    cut = tmp_path / "b.parquet"
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(ValueError, match="b.parquet is no whole parquet file"):
        load_captioned(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no file matches"):
        load_captioned(str(tmp_path / "c*.parquet"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository called owner/cats; `load_dataset` prefers a folder of that name to the network."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner/cats"
    (folder / "data").mkdir(parents=True)
    table(text=["a", "b", "c"]).to_parquet(folder / "data/train-00000-of-00001.parquet")
    table(1, 5, text=["z"]).to_parquet(folder / "data/test-00000-of-00001.parquet")
    return folder


def test_a_dataset_of_the_hub(hub: Path) -> None:
    images = load_captioned("hf:owner/cats")
    assert pairs(images) == [(f"cats_train_{n:07d}", (text,)) for n, text in enumerate("abc")]
    assert [sample.image for sample in images.samples] == [noise(n) for n in range(3)]
    assert pairs(load_captioned("hf:owner/cats:test")) == [("cats_test_0000000", ("z",))]
    assert pairs(load_captioned("hf:owner/cats?split=train[1:2]")) == [("cats_train-1-2-_0000000", ("b",))]


def test_shards_on_the_hub(hub: Path) -> None:
    """`datasets` reads webdataset shards into columns named after the suffixes."""
    for path in hub.rglob("*.parquet"):
        path.unlink()
    write_shard(hub / "data/train-00000.tar", "xy")
    assert pairs(load_captioned("hf:owner/cats")) == [("x", ("a x",)), ("y", ("a y",))]


def test_image_files_on_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps their paths, which are followed into what it downloaded and nowhere else."""
    for path in hub.rglob("*.parquet"):
        path.unlink()
    write_folder(hub, {"data/a.png": noise(0), "data/metadata.jsonl": '{"file_name": "a.png", "text": "a"}'})
    with pytest.raises(ValueError, match="1 without image"):
        load_captioned("hf:owner/cats")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    images = load_captioned("hf:owner/cats")
    assert pairs(images) == [("cats_train_0000000", ("a",))] and images[0].image == noise(0)


def test_a_dataset_of_the_hub_that_cannot_be_had(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with what to do."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in ("hf:owner/dogs", "hf:owner/cats:val"):
        with pytest.raises(
            FileNotFoundError, match="cannot load .*`hf download --repo-type dataset"
        ) as error:
            load_captioned(source)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="hf:owner/name"):
        load_captioned("hf:../owner")


@pytest.mark.parametrize("name, cells, option, expected", [
    ("sentences", [{"raw": "A cat.", "sentid": 3}, {"raw": "A dog.", "sentid": 4}], "sentences.raw", None),
    ("sentences", [[{"raw": "A cat."}, {"raw": "Cat."}], []], "sentences.raw", ["A cat.", "Cat."]),
    ("caption", [{"caption": "A cat."}, {"caption": "A dog."}], None, None),
    ("captions", [[{"text": "A cat."}, {"text": "Cat."}], [{"text": "A dog."}]], None, ["A cat.", "Cat."]),
    ("captions", [[["A cat."], ["Cat."]], [["A dog."]]], None, ["A cat.", "Cat."]),
    ("text", [{"en": {"short": "A cat."}}, {"en": {"short": "A dog."}}], "text.en.short", None),
    ("a.b", ["A cat.", "A dog."], "a.b", None),
])  # fmt: skip
@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_nested_captions(
    tmp_path: Path, form: str, name: str, cells: list, option: str | None, expected: list[str] | None
) -> None:
    """Fields of a column, at any depth, and lists of them: captions of one image."""
    rows = table(2, **{name: cells})
    source = str(tmp_path / "t.parquet") if form == "parquet" else str(tmp_path / "t")
    rows.to_parquet(source) if form == "parquet" else rows.save_to_disk(source)
    images = load_captioned(source + (f"?caption={option}" if option else ""))
    assert images[0].captions == tuple(expected or ["A cat."])
    assert all(each.captions == ("A dog.",) for each in images.samples[1:])


def test_fields_that_may_hold_captions_are_named(tmp_path: Path) -> None:
    table(1, sentences=[{"raw": "A cat.", "sentid": 3}]).to_parquet(tmp_path / "t.parquet")
    for option, message in (
        ("", r"which column is the caption\? .* it has \['image', 'sentences.raw'\]"),
        ("?caption=sentences.text", r"'sentences' has no field 'text': it has \['image', 'sentences.raw'\]"),
        ("?caption=sentence.raw", r"no column 'sentence': it has \['image', 'sentences.raw'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            load_captioned(f"{tmp_path}/t.parquet{option}")
