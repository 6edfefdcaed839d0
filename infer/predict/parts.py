"""The rows of a predict run folder, in parts (`parts/*.parquet`) and merged, read without holding them all.

A part is written after its images, by one rank. `merge.py` turns all parts into `samples.parquet` and
`traces.parquet`. Whatever is in either is done and not generated again.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet

from data.batches import in_batches
from data.disk import shows
from data.table_files import check_columns, readable
from infer.denoising.requests import Requests
from infer.predict.run_folder import AGAIN, KEY, inside, is_intact, write_table

THREADS = 8  # that look at images: a disk of a cluster answers many questions at a time


class Piece(NamedTuple):
    """What is read at once: a row group of a table, or a whole part."""

    path: Path
    row_group: int | None = None

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows; ValueError, with the file's name, where it is cut or lacks a column."""
        with readable(self.path, AGAIN), parquet.ParquetFile(self.path) as file:
            whole, names = self.row_group is None, file.schema_arrow.names
            rows = file.read(columns) if whole else file.read_row_group(self.row_group, columns)
        check_columns(self.path, names, columns or (), AGAIN)
        return rows.replace_schema_metadata()


def pieces_of(path: Path) -> list[Piece]:
    """The row groups of a table, which need not be there."""
    try:
        with readable(path, AGAIN), parquet.ParquetFile(path) as file:
            return [Piece(path, number) for number in range(file.num_row_groups)]
    except FileNotFoundError:
        return []


def write_part(folder: Path, samples: list[dict], traces: pd.DataFrame) -> None:
    """Write one batch's rows, after its images. Traces first: a sample row means that all is there.

    The name has the number of images, for `written`.
    """
    parts, name = folder / "parts", f"{uuid4().hex}.{len(samples)}"
    parts.mkdir(parents=True, exist_ok=True)
    write_table(traces, parts / f"{name}.traces.parquet")
    write_table(pd.DataFrame(samples), parts / f"{name}.samples.parquet")


def part_paths(folder: Path) -> list[Path]:
    """The parts' tables of samples, in order of their names."""
    return sorted((folder / "parts").glob("*.samples.parquet"))


def traces_of(part: Path) -> Path:
    """The traces of a part."""
    return part.with_name(part.name.replace(".samples.", ".traces."))


def written(folder: Path) -> int:
    """How many images the parts have, of all ranks, by their names: no file is opened."""
    try:
        names = [entry.name.split(".") for entry in os.scandir(folder / "parts")]
    except FileNotFoundError:
        return 0
    counts = (name[-3] for name in names if name[-2:] == ["samples", "parquet"])
    return sum(int(count) for count in counts if count.isdigit())


def wait_for(folder: Path, images: int) -> None:
    """Return once the parts have so many images, of all ranks; OSError where they do not come."""
    if not shows(lambda: written(folder) >= images):
        raise OSError(
            f"{folder / 'parts'} shows {written(folder):,} of the {images:,} images that all processes "
            "wrote: is it a folder that all machines share? The same command continues"
        )


def sample_pieces(folder: Path, rank: int = 0, world_size: int = 1) -> Iterator[Piece]:
    """A rank's share of the samples, merged ones first; of an image in two of them the later one counts."""
    yield from pieces_of(folder / "samples.parquet")[rank::world_size]
    for path in part_paths(folder)[rank::world_size]:
        yield Piece(path)


def finished(folder: Path, requests: Requests, rank: int = 0, world_size: int = 1) -> np.ndarray:
    """Which requests have an intact image, (len(requests),) bool, by this rank's share of the rows."""
    ready = np.zeros(len(requests), bool)
    pieces, columns = sample_pieces(folder, rank, world_size), [*KEY, "image"]
    for _, at, rows in good_rows(folder, requests, pieces, is_intact, columns):
        ready[at[rows]] = True
    return ready


def good_rows(
    folder: Path, requests: Requests, pieces: Iterable[Piece], good: Callable[[str], bool],
    columns: Sequence[str] | None = None,
) -> Iterator[tuple[pa.Table, np.ndarray, np.ndarray]]:  # fmt: skip
    """Of each piece the table, the positions of its rows, and the indices of those that count.

    A row counts if it is of one of the requests and its image is good.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        for piece in pieces:
            rows = piece.read(columns)
            check_columns(piece.path, rows.column_names, [*KEY, "image"], AGAIN)
            paths = image_paths(folder, rows)
            shares = in_batches(paths, -(-len(paths) // THREADS))  # a task costs more than a look
            whole = chain.from_iterable(pool.map(lambda share: [good(path) for path in share], shares))
            at = positions(rows, requests)
            yield rows, at, np.flatnonzero((at >= 0) & np.fromiter(whole, bool))


def holds_images(folder: Path) -> bool:
    """Whether any image that the tables list is there, intact."""
    tables = (piece.read([*KEY, "image"]) for piece in sample_pieces(folder))
    return any(is_intact(path) for rows in tables for path in image_paths(folder, rows))


def image_paths(folder: Path, rows: pa.Table) -> list[str]:
    """Where the images of the rows lie; ValueError for one that leads out of the folder."""
    images = rows["image"].to_pylist()
    for image in {os.path.dirname(str(image)): image for image in images}.values():
        inside(folder, image)  # one of each subfolder: a look at every image would take long
    return [f"{folder}/{image}" for image in images]


def positions(rows: pa.Table, requests: Requests) -> np.ndarray:
    """The position of each row among the requests, int64; -1 for a row that is none of them."""
    if not rows.num_rows:
        return np.zeros(0, np.int64)
    keys = rows["prompt_id"].combine_chunks().dictionary_encode()
    ids, which = keys.dictionary.to_pylist(), keys.indices.to_numpy()
    return requests.positions(ids, which, rows["sample"].to_numpy())
