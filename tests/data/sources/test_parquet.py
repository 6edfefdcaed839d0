"""Many parquet files: their splits, their ids, their number."""

import logging
import resource
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.captioned import load_captioned
from tests.data.image_files import noise


def write(path: Path, *texts: str, kind: pa.DataType | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": noise(n), "path": None} for n in range(len(texts))]
    kind = kind or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(images, kind), "text": list(texts)}), path)


def pairs(*sources: str) -> list[tuple[str, str]]:
    return [(sample.id, sample.caption) for sample in load_captioned(*sources).samples]


@pytest.mark.parametrize("name, key", [
    ("{}.parquet", "{}"), ("{}/0000.parquet", "{}_0000"), ("c/{}/0.parquet", "c_{}_0"),
    ("{}_0.parquet", "{}_0"),
])  # fmt: skip
def test_splits_are_not_mixed(tmp_path: Path, name: str, key: str, caplog: pytest.LogCaptureFixture) -> None:
    """Train is read, and that is said; both together have ids of their own."""
    for split in ("train", "test"):
        write(tmp_path / name.format(split), split)
    train, test = ((f"{key.format(split)}_0000000", split) for split in ("train", "test"))
    assert pairs(str(tmp_path)) == [train]
    assert f"{tmp_path}: only the split 'train' is read, of ['test', 'train']" in caplog.text
    assert pairs(f"{tmp_path}?split=train", f"{tmp_path}?split=test") == [train, test]
    assert pairs(f"{tmp_path}/{name.format('{train,test}')}?split=test")[0][1] == "test"
    with pytest.raises(ValueError, match=r"no split 'val': .* \['test', 'train'\]"):
        load_captioned(f"{tmp_path}?split=val")


def test_a_single_split_is_read_whatever_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also by the name of its own folder."""
    caplog.set_level(logging.WARNING)
    write(tmp_path / "test/0000.parquet", "a")
    assert len(pairs(str(tmp_path))) == len(pairs(str(tmp_path / "test"))) == 1
    assert len(pairs(f"{tmp_path}/test/*.parquet?split=test")) == 1 and not caplog.text


def test_files_of_one_name(tmp_path: Path) -> None:
    """In folders that are no splits: all are read."""
    for name in "ab":
        write(tmp_path / name / "0.parquet", name)
    assert pairs(str(tmp_path)) == [("a_0_0000000", "a"), ("b_0_0000000", "b")]


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    for number in range(80):
        write(tmp_path / f"{number:02d}.parquet", "a")
    pairs(f"{tmp_path}/00.parquet")  # what is loaded at first may hold files open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        assert len(pairs(str(tmp_path))) == 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_of_either_length(tmp_path: Path, kind: pa.DataType) -> None:
    """In a struct, as Hugging Face has images, too."""
    write(tmp_path / "a.parquet", "a", kind=pa.struct([("bytes", kind), ("path", pa.string())]))
    pq.write_table(pa.table({"image": pa.array([noise(0)], kind), "text": ["b"]}), tmp_path / "b.parquet")
    assert [text for name in "ab" for _, text in pairs(f"{tmp_path}/{name}.parquet")] == ["a", "b"]


def test_what_is_suggested_can_be_given(tmp_path: Path) -> None:
    """For a saved dataset its folder, with the options that were given."""
    rows = datasets.Dataset.from_dict({"image": [{"bytes": noise(0), "path": None}], "title": ["a"]})
    datasets.DatasetDict({"test": rows.cast_column("image", datasets.Image())}).save_to_disk(
        tmp_path / "cats"
    )
    with pytest.raises(ValueError, match=f"Say it as '{tmp_path}/cats.split=test&caption=COLUMN'"):
        load_captioned(f"{tmp_path}/cats?split=test")
    with pytest.raises(ValueError, match=f"Say it as '{tmp_path}/cats.caption=COLUMN'"):
        load_captioned(f"{tmp_path}/cats")
    assert pairs(f"{tmp_path}/cats?caption=title") == [("cats_test_0000000", "a")]


def test_ids_that_pandas_made_floats(tmp_path: Path) -> None:
    """Gaps in a column of whole numbers: the others keep theirs, as prompts do, and a gap has its row's."""
    images = [noise(number) for number in range(4)]
    table = {"image": images, "text": list("abcd"), "id": [7.0, float("nan"), float("nan"), 8.5]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    ids = [key for key, _ in pairs(str(tmp_path / "x.parquet"))]
    assert ids == ["7", "x_0000001", "x_0000002", "8.5"]


def test_a_second_column_of_images_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = pa.table({"image": [noise(0)], "edited": [noise(1)], "text": ["a"]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert load_captioned(str(tmp_path))[0].image == noise(0)
    assert "images of ['edited'] are not used; ?image= reads another column" in caplog.text
    assert load_captioned(f"{tmp_path}?image=edited")[0].image == noise(1)
