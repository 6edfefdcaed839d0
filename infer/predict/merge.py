"""Put the parts of a predict run folder together, in the order of the requests and in bounded memory.

Of each request two numbers say which row of which piece it is. Then one row group after the other is gathered
and written. A part holds requests that stand near each other, so it is read about once.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from data.files import remove, remove_temporary_files, write_atomically
from data.table_files import check_columns, readable
from infer.denoising.requests import Requests
from infer.predict.parts import Piece, good_rows, pieces_of, positions, sample_pieces, traces_of
from infer.predict.run_folder import AGAIN, KEY, ROW_GROUP, is_whole

log = logging.getLogger(__name__)
NOWHERE, MERGED = -2, -1  # where the traces of an image are, if not in the part of that number


class Cache:
    """Tables of pieces; each call keeps those that it asks for, and lets go of all others."""

    def __init__(self) -> None:
        self.tables: dict[Piece, pa.Table] = {}

    def __call__(self, pieces: Iterable[Piece]) -> list[pa.Table]:
        known = self.tables
        self.tables = {piece: known[piece] if piece in known else piece.read() for piece in pieces}
        return [*self.tables.values()]


def merge(folder: Path, requests: Requests) -> int:
    """Write `samples.parquet` and `traces.parquet` in the order of the requests, drop the parts.

    Rows of images that are gone, and of no request, are left out. Returns how many images there are.
    """
    merged, pieces = folder / "samples.parquet", list(sample_pieces(folder))
    piece, row = (np.full(len(requests), NOWHERE, np.int32) for _ in range(2))
    schema, former = pa.schema([]), 0
    for number, (rows, at, good) in enumerate(good_rows(folder, requests, pieces, is_whole)):
        piece[at[good]], row[at[good]] = number, good
        schema = together([schema, rows.schema])
        former += rows.num_rows if pieces[number].path == merged else 0
    present = np.flatnonzero(piece >= 0)
    if not len(present):
        return 0
    source, traces = np.full(len(requests), NOWHERE, np.int32), folder / "traces.parquet"
    source[present] = np.where(has_traces(pieces, merged)[piece[present]], piece[present], MERGED)
    # the columns of one part are those of all
    of_parts = [traces_of(pieces[source.max()].path)] if source.max() >= 0 else []
    old = pieces_of(traces)
    if not (known := [path for path in (traces, *of_parts) if path.exists()]):
        log.warning("%s has lost its traces: only new images bring them back", folder)
    if pieces[-1].path != merged or len(present) < former:
        if known:
            columns = together(map(columns_of_traces, known))
            in_order = traces_in_order(requests, present, source, pieces, old, columns)
            write(traces, in_order, columns)
        write(merged, samples_in_order(present, piece, row, pieces, schema), schema)
    remove(folder / "parts")
    remove_temporary_files(folder)
    return len(present)


def columns_of_traces(path: Path) -> pa.Schema:
    """The columns; ValueError, with the file's name, where it is cut or lacks one that is needed."""
    with readable(path, AGAIN):
        schema = parquet.read_schema(path).remove_metadata()
    check_columns(path, schema.names, [*KEY, "step"], AGAIN)
    return schema


def together(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The columns of all; a column that is empty in one part has its type from another."""
    distinct = list(dict.fromkeys(schemas))
    return pa.unify_schemas(distinct, promote_options="permissive") if len(distinct) > 1 else distinct[0]


def joined(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """The rows of all, with the columns of the schema; null where a table lacks one."""
    rows = pa.concat_tables([schema.empty_table(), *tables], promote_options="permissive")
    return rows.select(schema.names)


def has_traces(pieces: list[Piece], merged: Path) -> np.ndarray:
    """Which pieces are parts that have their traces, bool."""
    return np.array([each.path != merged and traces_of(each.path).exists() for each in pieces], bool)


def groups(present: np.ndarray) -> Iterator[np.ndarray]:
    """The positions of the images, in row groups."""
    return (present[start : start + ROW_GROUP] for start in range(0, len(present), ROW_GROUP))


def samples_in_order(
    present: np.ndarray, piece: np.ndarray, row: np.ndarray, pieces: list[Piece], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Row groups of the samples: request i is row `row[i]` of piece `piece[i]`."""
    read = Cache()
    for group in groups(present):
        numbers, which = np.unique(piece[group], return_inverse=True)
        tables = read(pieces[number] for number in numbers)
        starts = np.cumsum([0, *(table.num_rows for table in tables[:-1])])
        yield joined(tables, schema).take(pa.array(starts[which] + row[group]))


def traces_in_order(
    requests: Requests, present: np.ndarray, source: np.ndarray, pieces: list[Piece], merged: list[Piece],
    schema: pa.Schema,
) -> Iterator[pa.Table]:  # fmt: skip
    """Row groups of the traces: those of request i are in the part `source[i]`, or in the merged table."""
    read, spans = Cache(), [span(requests, piece) for piece in merged]
    for group in groups(present):
        low, high = group[0], group[-1]
        parts = [number for number in np.unique(source[group]) if number >= 0]
        old = [piece for piece, (at, to) in zip(merged, spans, strict=True) if at <= high and low <= to]
        wanted = [*(Piece(traces_of(pieces[number].path)) for number in parts), *old]
        kept, places = [], []
        for number, table in zip([*parts, *[MERGED] * len(old)], read(wanted), strict=True):
            at = positions(table, requests)
            rows = np.flatnonzero((at >= low) & (at <= high) & (source[at] == number))
            kept.append(table.take(pa.array(rows)))
            places.append(at[rows])
        rows = joined(kept, schema)
        order = np.lexsort((rows["step"].to_numpy(), np.concatenate([*places, np.zeros(0, np.int64)])))
        yield rows.take(pa.array(order)).cast(schema)


def span(requests: Requests, piece: Piece) -> tuple[int, int]:
    """The first and the last position of the rows."""
    at = positions(piece.read(KEY), requests)
    return (int(at.min()), int(at.max())) if len(at) else (len(requests), -1)


def write(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write the table atomically, a row group each."""

    def write_groups(part: Path) -> None:
        with parquet.ParquetWriter(part, schema) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(1, table.num_rows))

    write_atomically(path, write_groups)
