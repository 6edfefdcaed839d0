"""Columns of classes in tables: labels, and captions where there are no others."""

from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.captioned import load_captioned
from data.sources.classes import class_names
from tests.data.image_files import noise, write_folder
from tests.data.inspect.test_inspect import inspected

NAMES = ["tench", "golf_ball", "n03394916"]
WORDS = ["tench", "golf ball", "French horn"]


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` caches out of the home directory."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def table(classes: dict[str, list], **columns: list) -> datasets.Dataset:
    """Images with columns of classes, of the names above, and others."""
    count = len(next(iter(classes.values())))
    images = [{"bytes": noise(n), "path": None} for n in range(count)]
    rows = datasets.Dataset.from_dict({"image": images, **classes, **columns})
    for name in classes:
        rows = rows.cast_column(name, datasets.ClassLabel(names=NAMES))
    return rows.cast_column("image", datasets.Image())


def saved(rows: datasets.Dataset, folder: Path) -> str:
    rows.save_to_disk(folder / "saved")
    return str(folder / "saved")


def parquet(rows: datasets.Dataset, folder: Path) -> str:
    rows.to_parquet(folder / "a.parquet")
    return str(folder / "a.parquet")


@pytest.fixture(params=[saved, parquet])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[datasets.Dataset], str]:
    return lambda rows: request.param(rows, tmp_path)


def labelled(source: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(sample.label, sample.captions) for sample in load_captioned(source).samples]


@pytest.mark.parametrize("column", ["label", "class", "kind"])
def test_a_class_makes_the_caption(write: Callable, column: str) -> None:
    """Whatever its column is called, if it is the only one; as with class folders."""
    source = write(table({column: [2, 0, 1]}))
    expected = [WORDS[number] for number in (2, 0, 1)]
    assert labelled(source) == [(name, (f"An image of {name}",)) for name in expected]
    inspection = inspected(source)
    assert inspection.layouts[0][1].endswith(f"; captions by class ({column!r})")
    assert dict(inspection.rows())["classes"] == "3"


def test_a_class_that_is_named_as_the_caption(write: Callable) -> None:
    """Its names, not its numbers, and nothing around them."""
    source = write(table({"label": [1, 0], "kind": [0, 2]}))
    assert labelled(f"{source}?caption=label") == [("golf ball", ("golf ball",)), ("tench", ("tench",))]
    assert labelled(f"{source}?caption=kind") == [("tench", ("tench",)), ("French horn", ("French horn",))]
    assert labelled(f"{source}?caption=kind&label=label")[1] == ("tench", ("French horn",))


def test_one_class_of_several_must_be_chosen(write: Callable) -> None:
    """`label=` says it, of text too; a number has no name."""
    columns = {"breed": ["a_b ", None], "number": [3, 4]}
    source = write(table({"fine": [0, 1], "coarse": [1, 1]}, **columns))
    with pytest.raises(ValueError, match="which column is the caption"):
        load_captioned(source)
    assert labelled(f"{source}?label=fine") == [
        ("tench", ("An image of tench",)),
        ("golf ball", ("An image of golf ball",)),
    ]
    images = load_captioned(f"{source}?label=breed")
    assert [sample.label for sample in images.samples] == ["a_b"]
    assert images.skipped == {"without caption": 1}
    with pytest.raises(
        ValueError, match=r"'number' holds no names of classes, but int64; .*'coarse', 'fine'"
    ):
        load_captioned(f"{source}?label=number")
    with pytest.raises(ValueError, match="no column 'x'"):
        load_captioned(f"{source}?label=x")


def test_a_number_without_a_class(write: Callable) -> None:
    """Test splits have -1: without a caption nothing is left of the image, with one only the label goes."""
    images = load_captioned(write(table({"label": [0, -1, None]})))
    assert len(images) == 1 and images.skipped == {"without caption": 2}


def test_an_unknown_class_keeps_its_caption(write: Callable) -> None:
    assert labelled(write(table({"label": [-1, 2]}, text=["a", "b"]))) == [
        (None, ("a",)),
        ("French horn", ("b",)),
    ]


def test_each_parquet_file_has_its_own_classes(tmp_path: Path) -> None:
    table({"label": [0, 1]}).to_parquet(tmp_path / "a.parquet")
    other = table({"label": [0, 1]}).cast_column("label", datasets.ClassLabel(names=["x", "y"]))
    other.to_parquet(tmp_path / "b.parquet")
    assert [label for label, _ in labelled(str(tmp_path))] == ["tench", "golf ball", "x", "y"]


@pytest.mark.parametrize("metadata", [
    "{", "[1]", '{"info": null}',
    '{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1]}}}}',
])  # fmt: skip
def test_metadata_that_is_not_understood_counts_for_nothing(tmp_path: Path, metadata: str) -> None:
    columns = pa.table({"image": [noise(0)], "label": [0], "text": ["a"]})
    columns = columns.replace_schema_metadata({"huggingface": metadata})
    pq.write_table(columns, tmp_path / "a.parquet")
    assert class_names(columns.schema) == {}
    assert labelled(f"{tmp_path}/a.parquet") == [(None, ("a",))]


def test_class_folders_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` makes a ClassLabel of them; a folder stands in for the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    write_folder(
        tmp_path / "owner/cats", {f"train/{name}/{name}.png": noise(3) for name in ("a", "golf_ball")}
    )
    assert labelled("hf:owner/cats") == [("a", ("An image of a",)), ("golf ball", ("An image of golf ball",))]
