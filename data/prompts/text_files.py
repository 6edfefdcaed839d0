"""Rows of text files: lines, JSON lines, comma- and tab-separated tables."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from data.prompts.prompt import ID, KNOWN, TEXT, first
from data.table_files import csv_cell


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, stripped, without blank ones. Only a newline ends one: captions may hold U+2028."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line := line.strip():
                yield number, line


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered objects under lower-case names; NaN, which pandas writes and JSON has not, is null."""
    for number, line in lines(path):
        try:
            row = json.loads(line, parse_constant=lambda _: None)
            row = {name.lower(): value for name, value in row.items()}
            if first(row, TEXT) is None:
                raise ValueError(f"it has {list(row)}")
        except (ValueError, AttributeError, RecursionError) as error:
            wrong = f"not an object with a caption, prompt or text: {line[:200]}"
            raise ValueError(f"{path}, line {number}: {wrong}") from error
        yield number, row


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows under lower-case names, numbered by their last lines.

    An empty id is None; NaN is None too, except in texts and ids, where it may be meant.
    """
    with path.open(encoding="utf-8-sig") as file:
        try:
            header = next(filter(str.strip, file), "")
            suffix = path.suffix.lower()
            marks = "\t,;" if suffix == ".tsv" else ",;\t"
            separator = max(marks, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
            file.seek(0)
            as_text = (suffix, separator) == (".tsv", "\t")
            rows = tab_rows(file.read().split("\n")) if as_text else comma_rows(file, separator)
            names = [name.strip().lower() for name in next(rows, (0, TEXT))[1]]
            if not set(TEXT) & set(names):
                raise ValueError(f"header: no column caption, prompt or text among {names}")
            if twice := [name for name in KNOWN if names.count(name) > 1]:
                raise ValueError(f"header: two columns are called {twice[0]!r}: {names}")
            for number, cells in rows:
                if len(cells) != len(names):
                    raise ValueError(
                        f"line {number}: {len(cells)} fields under {len(names)} columns; "
                        f"a text with {separator!r} or a newline in it needs quotes"
                    )
                texts = map(str.strip, cells)
                row = dict(zip(names, map(csv_cell, texts) if suffix == ".csv" else texts, strict=True))
                missing = [
                    name for name, cell in row.items()
                    if (not cell and name in ID) or (cell in ("NaN", "nan") and name not in TEXT + ID)
                ]  # fmt: skip
                yield number, row | dict.fromkeys(missing)
        except UnicodeDecodeError:
            raise
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, {error}") from error


def comma_rows(file: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, cells) of each row that is not blank."""
    reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        yield from ((reader.line_num, cells) for cells in reader if cells)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def tab_rows(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The same of tab-separated lines, in which a mark is text unless the whole cell is quoted."""
    number, columns = 0, 0
    while number < len(lines):
        cells, last = lines[number].split("\t"), number + 1
        columns = columns or len(cells) * bool(lines[number].strip())
        unclosed = any(cell.startswith('"') and cell.count('"') % 2 for cell in cells)
        if unclosed or len(cells) != columns:  # a quoted cell with tabs or newlines, if it can be read as one
            reader = csv.reader(
                (f"{line}\n" for line in islice(lines, number, None)), "excel-tab", strict=True
            )
            with suppress(csv.Error):
                row = next(reader)
                own = (line.count("\t") + 1 for line in lines[number : number + reader.line_num])
                # lines that are rows by themselves stay rows, whatever marks they begin and end with
                if len(row) == columns and (columns == 1 or any(count != columns for count in own)):
                    cells, last = row, number + reader.line_num
        else:
            quoted = [re.fullmatch(r'\s*"((?:[^"]|"")*)"\s*', cell) for cell in cells]
            pairs = zip(cells, quoted, strict=True)
            cells = [match[1].replace('""', '"') if match else cell for cell, match in pairs]
        number = last
        if "".join(cells).strip():
            yield number, cells
