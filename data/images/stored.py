"""Images that stay on disk: where the bytes of each are, read when they are needed.

A location is small, can be pickled, and opens its file in the process that reads it, so that DataLoader
workers may be forked or spawned.
"""

import os
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from data.remote import opened, present

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

MAX_BYTES = 1 << 30  # of an encoded image: the largest that is decoded has 0.7 GB where nothing is compressed
ROW_GROUPS = 2  # whose images each process holds: a parquet file gives a row group as a whole or not at all
lock = Lock()


class WholeFile(NamedTuple):
    """A file of its own."""

    path: str

    def read(self) -> bytes:
        """OSError for a file that no image can need, before it fills the memory."""
        if (size := os.path.getsize(self.path)) > MAX_BYTES:
            raise OSError(f"{self.path} has {size:,} bytes, the limit is {MAX_BYTES:,}")
        return Path(self.path).read_bytes()


class Span(NamedTuple):
    """A part of a file, such as a member of a tar that is not compressed."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """OSError for a file that has become shorter, or a part that no image can need."""
        if self.size > MAX_BYTES:
            raise OSError(f"a member of {self.path} has {self.size:,} bytes, the limit is {MAX_BYTES:,}")
        with opened(self.path, 0) as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(f"{self.path} ends before byte {self.offset + self.size}: it has changed")
        return content


class ParquetCell(NamedTuple):
    """A cell of a parquet file; to read it in a random order means to read its row group each time."""

    path: str
    row_group: int
    row: int  # in its row group
    column: str

    def read(self) -> bytes | None:
        with lock:
            cells = row_group(self.path, self.row_group, self.column)
        return encoded(cells[self.row].as_py())


@lru_cache(ROW_GROUPS)
def row_group(path: str, number: int, column: str) -> "pa.ChunkedArray":
    import pyarrow.parquet as pq

    with pq.ParquetFile(present(path)) as table:
        return table.read_row_group(number, columns=[column]).column(0)


class DatasetCell(NamedTuple):
    """A cell of a Hugging Face dataset, which is memory-mapped; paths lead into `trusted` folders only."""

    rows: "Dataset"
    row: int
    column: str
    trusted: tuple[Path, ...]

    def read(self) -> bytes | None:
        return encoded(self.rows[self.row][self.column], self.trusted)


Stored = bytes | WholeFile | Span | ParquetCell | DatasetCell


def read(stored: Stored | None) -> bytes | None:
    """The bytes of an image; None where there is none."""
    return stored if stored is None or isinstance(stored, bytes) else stored.read()


def encoded(cell: Any, trusted: tuple[Path, ...] = ()) -> bytes | None:
    """The image in a cell of a table: bytes, or {bytes, path}."""
    if isinstance(cell, dict):
        path, cell = cell.get("path"), cell.get("bytes")
        if cell is None and path:
            file = Path(path).resolve()
            if any(file.is_relative_to(folder) for folder in trusted) and file.is_file():
                return file.read_bytes()
    return cell if isinstance(cell, bytes) else None
