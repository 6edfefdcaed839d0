"""Folders of images: captions beside them, in a metadata table, or in the names of class folders."""

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.layouts_rows import Row, Source, caption_in_json, images_below, is_image, path_ids

log = logging.getLogger(__name__)
METADATA = ("metadata.jsonl", "metadata.csv")
CLASS_PROMPT = "An image of {}"
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def beside(path: Path) -> Any:
    """The caption next to an image: its `.txt`, else the `caption` in its `.json`."""
    if (text := path.with_suffix(".txt")).is_file():
        return text.read_bytes()
    described = path.with_suffix(".json")
    return caption_in_json(described.read_bytes()) if described.is_file() else None


def open_captions_beside(folder: Path, skipped: Counter) -> Source:
    """Images directly in the folder; what lies deeper belongs to another layout, and is counted."""
    paths = sorted(filter(is_image, folder.iterdir()))
    if deeper := len(images_below(folder)) - len(paths):
        skipped["in a subfolder"] += deeper
    return Source("images with captions beside them", rows_beside(paths, folder), len(paths))


def rows_beside(paths: list[Path], root: Path) -> Iterator[Row]:
    ids = path_ids(paths, root)
    for path in paths:
        yield Row(ids[path], path.read_bytes(), beside(path))


def open_nested(folder: Path, paths: list[Path]) -> Source:
    """Images in subfolders: with captions beside them (img2dataset's `files` output), else class folders.

    ValueError where a single subfolder would have to be the class of everything.
    """
    if any(beside(path) is not None for path in paths):
        return Source("folders of images with captions beside them", rows_beside(paths, folder), len(paths))
    classes = sorted({path.parent.name for path in paths})
    if len(classes) == 1 and classes[0] not in IMAGENETTE:
        raise ValueError(
            f"{folder} has images in {classes[0]!r} and no captions: give their file as "
            f"'{folder}?captions=FILE.json', or two or more class folders"
        )
    if unnamed := [name for name in classes if re.fullmatch(r"n\d{8}", name) and name not in IMAGENETTE]:
        log.warning("%s: WordNet ids without a known name stand in prompts as they are: %s", folder, unnamed)
    return Source(f"class folders ({len(classes)})", rows_by_class(paths, folder), len(paths))


def rows_by_class(paths: list[Path], root: Path) -> Iterator[Row]:
    ids = path_ids(paths, root)
    for path in paths:
        name = path.parent.name
        yield Row(
            ids[path],
            path.read_bytes(),
            CLASS_PROMPT.format(IMAGENETTE.get(name, name.replace("_", " "))),
        )


def open_metadata(folder: Path, table: Path, skipped: Counter) -> Source:
    """An image folder as Hugging Face has it: a table of file_name and text (or caption)."""
    rows = list(table_rows(table))
    fields = sorted({name for row in rows for name in row})
    caption = next((name for name in ("text", "caption") if name in fields), None)
    if caption is None or "file_name" not in fields:
        raise ValueError(f"{table} needs 'file_name', and 'text' or 'caption'; it has {fields}")
    return Source(f"image folder with {table.name}", rows_of_table(folder, rows, caption, skipped), len(rows))


def table_rows(table: Path) -> Iterator[dict[str, Any]]:
    try:
        with table.open(encoding="utf-8-sig", newline="" if table.suffix == ".csv" else None) as file:
            if table.suffix == ".csv":
                yield from csv.DictReader(file)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    yield row
    except (ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f"{table} cannot be read: {error}") from error


def rows_of_table(folder: Path, rows: list[dict[str, Any]], caption: str, skipped: Counter) -> Iterator[Row]:
    """A row's file is one that lies in the folder: a name that leads elsewhere is as good as none."""
    inside = {path.relative_to(folder).as_posix(): path for path in images_below(folder)}
    ids = path_ids(inside.values(), folder)
    listed = set()
    for row in rows:
        name = str(row.get("file_name")).replace("\\", "/").removeprefix("./")
        path = inside.get(name)
        listed.add(name)
        yield Row(ids[path] if path else name, path and path.read_bytes(), row.get(caption))
    if unlisted := len(inside.keys() - listed):
        skipped["without caption"] += unlisted
