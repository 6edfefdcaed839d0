"""Tables as files: parquet that this project wrote, read again, and CSV that a spreadsheet may open."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.files import one_line

if TYPE_CHECKING:
    import pandas as pd

EXPOSURES = ("id", "caption", "times_shown")
FIT_AGAIN = "the same fit writes it again, if you delete it"
FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet runs begins so (OWASP, "CSV Injection")


def csv_text(rows: "pd.DataFrame") -> str:
    """The rows as CSV, with ' before each text that a spreadsheet would run as a formula."""

    def harmless(cell: Any) -> Any:
        return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell

    texts = rows.select_dtypes(["object", "string"])
    return rows.assign(**{name: texts[name].map(harmless) for name in texts}).to_csv(index=False)


def csv_cell(cell: str) -> str:
    """What `csv_text` wrote, as it was."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


@contextmanager
def readable(path: Path, advice: str) -> Iterator[None]:
    """Raise ValueError, with the advice, where the file is cut or no parquet; FileNotFoundError stays."""
    from pyarrow import ArrowException

    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError, ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}): {advice}") from error


def check_columns(path: Path, names: list[str], needed: Iterable[str], advice: str) -> None:
    """ValueError, with the advice, where one that is needed is not among the names."""
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"{path} has no column {missing[0]!r}, but {names}: {advice}")


def read_table(
    path: Path, needed: Iterable[str], advice: str, columns: list[str] | None = None
) -> "pd.DataFrame":
    """The rows of a file, or some of its columns.

    ValueError, with the advice, where it is cut or lacks one of the columns that are needed.
    """
    import pandas as pd
    import pyarrow.parquet as parquet

    with readable(path, advice):
        names = parquet.read_schema(path).names
    check_columns(path, names, [*needed, *(columns or ())], advice)
    with readable(path, advice):
        return pd.read_parquet(path, columns=columns)


def read_exposures(folder: Path) -> "pd.DataFrame":
    """What a training run showed: id, caption, times_shown, and `duplicated` where it says so.

    ValueError where the file is cut, is another's, or lacks an id or a caption.
    """
    path = folder / "exposures.parquet"
    rows = read_table(path, EXPOSURES, FIT_AGAIN)
    if lacking := [name for name in ("id", "caption") if not rows[name].map(type).eq(str).all()]:
        raise ValueError(f"{path} has a row whose {lacking[0]} is no text: {FIT_AGAIN}")
    return rows


def stream_exposures(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of `read_exposures` one by one, with its errors, never whole in memory."""
    import pyarrow.parquet as parquet

    path = folder / "exposures.parquet"
    with readable(path, FIT_AGAIN):
        names = parquet.read_schema(path).names
    check_columns(path, names, EXPOSURES, FIT_AGAIN)
    columns = [*EXPOSURES, *(["duplicated"] if "duplicated" in names else [])]
    for row in rows_in(path, columns, FIT_AGAIN):
        if lacking := [name for name in ("id", "caption") if not isinstance(row[name], str)]:
            raise ValueError(f"{path} has a row whose {lacking[0]} is no text: {FIT_AGAIN}")
        yield row


def rows_in(path: Path, columns: list[str], advice: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as parquet

    with readable(path, advice), parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=columns):
            yield from batch.to_pylist()
