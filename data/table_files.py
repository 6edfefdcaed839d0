"""Tables as files: parquet that this project wrote, read again, and CSV that a spreadsheet may open."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.files import one_line

if TYPE_CHECKING:
    import pandas as pd

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


def read_table(path: Path, columns: Iterable[str], advice: str) -> "pd.DataFrame":
    """The rows of a file; ValueError, with the advice, where it is cut or lacks one of the columns."""
    import pandas as pd
    from pyarrow import ArrowException

    try:
        rows = pd.read_parquet(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}): {advice}") from error
    if missing := [name for name in columns if name not in rows]:
        raise ValueError(f"{path} has no column {missing[0]!r}, but {[*rows]}: {advice}")
    return rows


def read_exposures(folder: Path) -> "pd.DataFrame":
    """What a training run showed: id, caption, times_shown, and `duplicated` where it says so.

    ValueError where the file is cut, is another's, or lacks an id or a caption.
    """
    path, advice = folder / "exposures.parquet", "the same fit writes it again, if you delete it"
    rows = read_table(path, ["id", "caption", "times_shown"], advice)
    if lacking := [name for name in ("id", "caption") if not rows[name].map(type).eq(str).all()]:
        raise ValueError(f"{path} has a row whose {lacking[0]} is no text: {advice}")
    return rows
