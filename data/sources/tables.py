"""Tables with the images in them: Hugging Face datasets from the Hub or from disk, and parquet files."""

import logging
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.files import one_line, read_object
from data.images.stored import DatasetCell, ParquetCell, Stored
from data.remote import present
from data.sources.classes import CLASS_PROMPT, class_names, label_of, named
from data.sources.columns import Columns, captions_of, choose, holds_images
from data.sources.rows import SPLITS, Row, Source, file_id, files_below, matching_files, path_ids

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow.parquet import ParquetFile

log = logging.getLogger(__name__)
SAVED = ("state.json", "dataset_dict.json")


def whole_number(key: Any) -> Any:
    """7 for the 7.0 that pandas makes of it in a column with gaps, and None for a gap, which is NaN there."""
    if isinstance(key, float):
        return None if math.isnan(key) else int(key) if key.is_integer() else key
    return key


def rows_of(
    records: Iterable[tuple[Stored, dict[str, Any]]], columns: Columns, name: str,
    classes: dict[str, list[str]],
) -> Iterator[Row]:  # fmt: skip
    """Rows of pairs (where the image is, the other columns).

    Without a column of ids, a row's id is its number, after the name of its table. `classes` are the names in
    columns of classes. Without a column of captions the class makes the caption.
    """
    for number, (image, record) in enumerate(records):
        key = whole_number(record[columns.id]) if columns.id else None
        key = f"{name}_{number:07d}" if key is None else str(key)
        label = label_of(record[columns.label], classes.get(columns.label)) if columns.label else None
        if columns.caption:
            caption = captions_of(
                named(record[columns.caption], classes.get(columns.caption)), columns.within
            )
        else:
            caption = label and CLASS_PROMPT.format(label)
        yield Row(file_id(key), image, caption, label)


def distinct(columns: Columns, ids: Iterable[Any], options: dict[str, str], source: str) -> Columns:
    """Without the id column, if it was guessed and does not tell the rows apart."""
    ids = [key for key in map(whole_number, ids) if key is not None]  # a gap has its row's number
    if columns.id is None or "id" in options or len({file_id(str(key)) for key in ids}) == len(ids):
        return columns
    log.warning("%s: the column %r repeats, so ids are row numbers", source, columns.id)
    return columns._replace(id=None)


def open_dataset(
    rows: "Dataset", name: str, layout: str, source: str, options: dict[str, str],
    trusted: tuple[Path, ...] = (),
) -> Source:  # fmt: skip
    """Images stay as they are encoded."""
    import datasets

    schema = rows.features.arrow_schema
    columns = choose(schema, options, source)
    if columns.id:
        columns = distinct(columns, rows[columns.id], options, source)
    if isinstance(rows.features[columns.image], datasets.Image):
        rows = rows.cast_column(columns.image, datasets.Image(decode=False))
    images, texts = rows.select_columns([columns.image]), rows.select_columns(columns.texts())
    cells = (DatasetCell(images, number, columns.image, trusted) for number in range(len(rows)))
    records = zip(cells, texts if columns.texts() else repeat({}), strict=False)
    return Source(
        layout, rows_of(records, columns, name, class_names(schema)), len(rows), notes=columns.notes()
    )


def open_hub(source: str, options: dict[str, str]) -> Source:
    """`hf:owner/name` or `hf:owner/name:split`. FileNotFoundError, saying what to do, if it cannot be had."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    match = re.fullmatch(r"hf:(\w[\w.-]*(?:/\w[\w.-]*)?)(?::([^:]+))?", source)
    if not match:
        raise ValueError(f"{source!r}: a dataset of the Hub is hf:owner/name or hf:owner/name:split")
    name, split = match[1], options.get("split") or match[2] or "train"
    try:
        rows = datasets.load_dataset(
            name, options.get("config"), split=split, revision=options.get("revision")
        )
    except Exception as error:  # of the network, the Hub, the builder: a dozen kinds from four libraries
        raise FileNotFoundError(
            f"cannot load the dataset {name!r}, split {split!r}, from the Hub ({one_line(error)}): check "
            "name, split and network, `hf auth login` if it is gated, ?config= if it has several; or fetch "
            f"it elsewhere by `hf download --repo-type dataset {name} --local-dir FOLDER`, and give FOLDER"
        ) from error
    # a loader of files keeps paths into what it downloaded
    caches = tuple(Path(cache).resolve() for cache in (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE))
    short = f"{name.split('/')[-1]}_{re.sub(r'[^0-9A-Za-z]+', '-', split)}"
    return open_dataset(rows, short, f"hf:{name}:{split}", source, options, caches)


def open_saved(folder: Path, options: dict[str, str]) -> Source:
    """A folder by `save_to_disk`: one dataset, or several splits."""
    import datasets

    try:
        for state in (folder / "state.json", *folder.glob("*/state.json")):
            for file in read_object(state).get("_data_files", ()):
                if not (state.parent / file["filename"]).resolve().is_relative_to(folder.resolve()):
                    raise ValueError(f"{file['filename']!r} of its {state.name} leads out of the folder")
        rows = datasets.load_from_disk(str(folder))
    except Exception as error:  # of a file that is missing or cut: half a dozen kinds from two libraries
        raise ValueError(f"{folder} is no whole dataset of save_to_disk: {one_line(error)}") from error
    name = folder.resolve().name
    if isinstance(rows, datasets.DatasetDict):
        split = options.get("split") or ("train" if "train" in rows or len(rows) > 1 else next(iter(rows)))
        if split not in rows:
            raise ValueError(f"{folder} has no split {split!r}: say ?split= with one of {sorted(rows)}")
        rows, name = rows[split], f"{name}_{split}"
    return open_dataset(rows, name, f"{folder} (saved dataset, {name})", str(folder), options)


def parquet_files(path: str) -> list[Path]:
    """Of a folder (also in its subfolders), or of braces and globs."""
    if Path(path).is_dir():
        return files_below(Path(path), lambda path: path.suffix == ".parquet")
    return [Path(name) for name in matching_files(path)]


def split_of(path: Path, root: Path) -> str | None:
    """By the name of the file (train-00000-of-00002, train, train_0), else of a folder above it."""
    if match := re.match(r"(\w+?)-\d+-of-\d+", path.name) or re.fullmatch(
        rf"({'|'.join(SPLITS)})(?:[-_.]?\d+)?", path.stem, re.IGNORECASE
    ):
        return match[1].lower() if match[1].lower() in SPLITS else match[1]
    folders = reversed((root.absolute().name, *path.relative_to(root).parts[:-1]))
    return next((name.lower() for name in folders if name.lower() in SPLITS), None)


def of_split(source: str, files: list[Path], root: Path, split: str | None) -> list[Path]:
    """The files of one split: train, if there are several and none is said; ValueError if it has none."""
    splits = {path: name for path in files if (name := split_of(path, root))}
    names = sorted(set(splits.values()))
    if split is None:
        if len(names) < 2:
            return files
        split = "train"
        log.warning("%s: only the split 'train' is read, of %s; ?split= reads another", source, names)
    chosen = [path for path in files if splits.get(path, path.stem) == split]
    if not chosen:
        raise ValueError(f"{source} has no split {split!r}: say ?split= with one of {names}")
    return chosen


def open_parquet(source: str, files: list[Path], options: dict[str, str]) -> Source:
    """Files are opened one at a time; without a column of ids, rows are numbered after the file's name."""
    root = (
        Path(source) if Path(source).is_dir() else Path(os.path.commonpath([file.parent for file in files]))
    )
    names = path_ids(files, root)
    files = of_split(source, files, root, options.get("split"))
    columns, total, classes = None, 0, {}
    for path in files:
        with whole_parquet(path) as table:
            schema, total = table.schema_arrow, total + table.metadata.num_rows
        columns, classes[path] = columns or choose(schema, options, source), class_names(schema)
        if missing := [name for name in columns.names() if name not in schema.names]:
            raise ValueError(f"{path} has no column {missing[0]!r}, which {files[0]} has")
    if columns.id:
        ids = (key for path in files for key in column(path, columns.id))
        columns = distinct(columns, ids, options, source)
    rows = (
        row for path in files for row in rows_of(records(path, columns), columns, names[path], classes[path])
    )
    return Source(f"parquet files ({len(files)})", rows, total, notes=columns.notes())


@contextmanager
def whole_parquet(path: Path) -> Iterator["ParquetFile"]:
    """The file, opened; ValueError, which names it, where pyarrow finds it cut or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = present(path)
    try:
        with pq.ParquetFile(place) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no whole parquet file: {one_line(error)}") from error


def records(path: Path, columns: Columns) -> Iterator[tuple[ParquetCell, dict[str, Any]]]:
    """Where each row's image is, with its other columns."""
    with whole_parquet(path) as table:
        for group in range(table.num_row_groups):
            rows = table.read_row_group(group, columns=columns.texts()).to_pylist()
            for row in range(table.metadata.row_group(group).num_rows):
                yield ParquetCell(str(path), group, row, columns.image), rows[row] if rows else {}


def column(path: Path, name: str) -> Iterator[Any]:
    with whole_parquet(path) as table:
        for batch in table.iter_batches(columns=[name]):
            yield from batch.column(0).to_pylist()


def has_image_column(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return any(holds_images(field.type) for field in pq.read_schema(path))
    except (pa.ArrowException, OSError):
        return False
