"""Folders of images: captions beside them, in a metadata table, or in the names of class folders."""

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.images.stored import WholeFile
from data.sources.beside import beside, count_lone, is_caption
from data.sources.classes import CLASS_PROMPT, IMAGENETTE, readable
from data.sources.kohya import named, repeats_of
from data.sources.rows import Row, Source, count_unused, file_rows, files_below, images_below, path_ids

log = logging.getLogger(__name__)
METADATA = ("metadata.jsonl", "metadata.csv")
NO_CLASSES = ("images", "image", "imgs", "img", "pictures", "photos", "data", "files")


def open_captions_beside(folder: Path, skipped: Counter) -> Source:
    """Images directly in the folder; those in subfolders belong to another layout, and are counted."""
    images = images_below(folder)
    paths = [path for path in images if path.parent == folder]
    count_unused(
        str(folder), "images in subfolders", [path for path in images if path.parent != folder], skipped
    )
    if (kohya := named(folder.resolve())) and kohya.repeats > 1:
        log.warning(
            "%s: each image is shown once; to show them %d times, as Kohya's scripts would, give the folder "
            "above", folder, kohya.repeats,
        )  # fmt: skip
    count_lone(folder, paths, filter(is_caption, sorted(folder.iterdir())), skipped)
    return Source("images with captions beside them", file_rows(paths, folder, beside), len(paths))


def file_name(path: Path) -> str:
    """A file's name as a caption: without suffix, `_` as spaces, and without the ` (2)` of a second file."""
    return re.sub(r"\s*\(\d+\)$", "", path.stem.replace("_", " "))


def open_file_names(folder: Path, images: list[Path]) -> Source:
    """Images at any depth; Kohya's folders keep their repeats."""
    repeats = repeats_of(folder, images)
    rows = file_rows(images, folder, file_name, repeats=lambda path: repeats.get(path, 1))
    return Source("images with their file names as captions", rows, len(images))


def open_nested(folder: Path, paths: list[Path], skipped: Counter) -> Source:
    """Images in subfolders: with captions beside them (img2dataset's `files` output), else class folders.

    ValueError where a single subfolder would have to be the class of everything.
    """
    if deep := [path.parent for path in paths if named(path.parent)]:
        raise ValueError(
            f"{deep[0].name!r} in {folder} is a folder for Kohya's scripts: give the one above it, "
            f"{deep[0].parent}"
        )
    if any(beside(path) is not None for path in paths):
        count_lone(folder, paths, files_below(folder, is_caption), skipped)
        layout = "folders of images with captions beside them"
        return Source(layout, file_rows(paths, folder, beside), len(paths))
    classes = sorted({path.parent.name for path in paths})
    if len(classes) == 1 and classes[0] not in IMAGENETTE:
        raise ValueError(
            f"{folder} has images in {classes[0]!r} and no captions: give their file as "
            f"'{folder}?captions=FILE.json', or two or more class folders"
        )
    if unnamed := [name for name in classes if re.fullmatch(r"n\d{8}", name) and name not in IMAGENETTE]:
        log.warning("%s: WordNet ids without a known name appear in prompts as they are: %s", folder, unnamed)
    example = f"captions made of folder names, such as {CLASS_PROMPT.format(readable(classes[0]))!r}"
    if doubtful := [
        name for name in classes if not any(map(str.isalpha, name)) or name.lower() in NO_CLASSES
    ]:
        log.warning(
            "%s: NO CAPTIONS FOUND: %s. If folders such as %r are no classes, give captions as "
            "'%s?captions=FILE.json'", folder, example, doubtful[0], folder,
        )  # fmt: skip
    layout = f"class folders ({len(classes)})"
    rows = file_rows(paths, folder, lambda path: CLASS_PROMPT.format(class_of(path)), class_of)
    return Source(layout, rows, len(paths), notes=[example])


def class_of(path: Path) -> str:
    return readable(path.parent.name)


def metadata_below(folder: Path) -> list[Path]:
    """The tables, those of the folder itself first, `.jsonl` before `.csv`."""
    tables = files_below(folder, lambda path: path.name in METADATA)
    return sorted(tables, key=lambda path: (len(path.parts), path.parent, METADATA.index(path.name)))


def open_metadata(folder: Path, tables: list[Path], skipped: Counter) -> Source:
    """An image folder as Hugging Face has it: tables of file_name, from theirs on, and text (or caption).

    The folder's own table, or else the first of each subfolder; others are counted.
    """
    every = tables
    tables = list({table.parent: table for table in reversed(every)}.values())[::-1]
    tables = tables[:1] if tables[0].parent == folder else tables
    unused = [table for table in every if table not in tables]
    count_unused(str(folder), "metadata tables", unused, skipped)
    captions: dict[str, list[Any]] = {}
    for table in tables:
        rows = list(table_rows(table))
        fields = sorted({name for row in rows for name in row})
        caption = next((name for name in ("text", "caption") if name in fields), None)
        if caption is None or "file_name" not in fields:
            raise ValueError(f"{table} needs 'file_name', and 'text' or 'caption'; it has {fields}")
        way = "".join(f"{part}/" for part in table.parent.relative_to(folder).parts)
        for row in rows:
            name = way + str(row.get("file_name")).replace("\\", "/").removeprefix("./")
            captions.setdefault(name, []).append(row.get(caption))
    where = tables[0].name if tables[0].parent == folder else f"{tables[0].name} in {len(tables)} subfolders"
    return Source(f"image folder with {where}", rows_of_table(folder, captions, skipped), len(captions))


def table_rows(table: Path) -> Iterator[dict[str, Any]]:
    try:
        with table.open(encoding="utf-8-sig", newline="" if table.suffix == ".csv" else None) as file:
            if table.suffix == ".csv":
                reader = csv.DictReader(file)
                names = reader.fieldnames or []
                if twice := [name for name in names if names.count(name) > 1]:
                    raise ValueError(f"two columns are called {twice[0]!r}")
                for row in reader:
                    if None in row:
                        raise ValueError(
                            f"line {reader.line_num} has more fields than the header: a text with a comma in "
                            "it needs quotes"
                        )
                    yield row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    yield row
    except (ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f"{table} cannot be read: {error}") from error


def rows_of_table(folder: Path, captions: dict[str, list[Any]], skipped: Counter) -> Iterator[Row]:
    """Rows of a table; a name that leads out of the folder counts as a missing image."""
    inside = {path.relative_to(folder).as_posix(): path for path in images_below(folder)}
    ids = path_ids(inside.values(), folder)
    for name, each in captions.items():
        path = inside.get(name)
        yield Row(ids[path] if path else name, path and WholeFile(str(path)), merged(each))
    unlisted = [path for name, path in inside.items() if name not in captions]
    count_unused(str(folder), "without caption", unlisted, skipped)


def merged(captions: list[Any]) -> Any:
    """What several rows say of one image, each caption once."""
    if len(captions) == 1:
        return captions[0]
    each = [text for cell in captions for text in (cell if isinstance(cell, list) else [cell])]
    return list({repr(text): text for text in each if text is not None}.values())
