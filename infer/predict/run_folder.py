"""A predict run folder's files: names of images, images that are whole, and tables in parquet."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data.files import digest, write_atomically
from data.table_files import read_table

KEY = ["prompt_id", "sample"]
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
LONGEST = 150  # bytes of an id in a file name
AGAIN = "delete it, and predict makes again what it listed"
ROW_GROUP = 2048  # images of which a table's rows are written, and read, together


class FileStems:
    """What the file names of each id begin with: no two are one on a disk that ignores case.

    An id stands for itself, but one that is very long, or that differs from another in case or in how its
    letters are composed only, is shortened and gets a digest. Of the ids only hashes are held.
    """

    def __init__(self, ids: Iterable[str]):
        pairs = ((hash(key), hash(folded(key))) for key in ids)
        hashes = np.fromiter(pairs, np.dtype([("id", np.int64), ("stem", np.int64)]))
        _, first = np.unique(hashes["id"], return_index=True)
        stems, often = np.unique(hashes["stem"][first], return_counts=True)
        self.shared = set(stems[often > 1].tolist())

    def __getitem__(self, key: str) -> str:
        if hash(folded(key)) not in self.shared and len(key.encode()) <= LONGEST:
            return key
        return f"{key.encode()[:LONGEST].decode(errors='ignore')}~{digest(key)[:8]}"


def folded(key: str) -> str:
    """The id as a disk sees it that ignores case and composition."""
    return unicodedata.normalize("NFC", key).casefold()


def is_whole(path: Path | str) -> bool:
    """Whether the file is there, with a PNG's end."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:
        return False


def is_intact(path: Path | str) -> bool:
    """Whether the file is a whole PNG whose chunks have their checksums; nothing is decoded."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except Exception:  # image decoders raise many kinds
        return False
    return is_whole(path)


def save_image(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: image.save(part))


def write_table(rows: pd.DataFrame, path: Path) -> None:
    write_atomically(path, lambda part: rows.to_parquet(part, index=False, row_group_size=ROW_GROUP))


def read_parquet(path: Path, needed: Iterable[str], columns: list[str] | None = None) -> pd.DataFrame:
    """The rows of a run folder's file, or these columns of them.

    ValueError, with the file's name, where it is cut or lacks a column that is needed.
    """
    return read_table(path, needed, AGAIN, columns)


def inside(folder: Path, relative: str) -> Path:
    """The path that a data file names; ValueError if it leads out of the folder."""
    path = (folder / str(relative)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{relative!r} points outside of {folder}")
    return path
