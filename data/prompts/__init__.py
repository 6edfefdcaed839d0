"""Prompts in every form that people have: text, JSON lines, tables, training runs, captioned images."""

import csv
import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from data.captioned import load_captioned
from data.files import digest, remembered_sha256
from data.prompts.tables import coco_rows, is_prompt_parquet, parquet_rows
from data.remote import fetched, is_remote, present
from data.sources.captions_file import captions_file
from data.sources.layouts import is_data, with_options
from data.sources.rows import clean, files_below, matching_files
from data.sources.shards import SHARD_SUFFIXES
from data.table_files import csv_cell, stream_exposures

log = logging.getLogger(__name__)
# What each part of a prompt may be called in a file, in any case; the first that has a value counts.
TEXT, ID = ("caption", "prompt", "text"), ("id", "index")
NEGATIVE, ALTERNATIVE = ("negative_prompt", "negative"), ("alternative_prompt", "alternative")
KNOWN = TEXT + ID + NEGATIVE + ALTERNATIVE


class Prompt(NamedTuple):
    """An id that does not depend on the order of the file, the text, and what may come with it.

    `negative` replaces the empty prompt ("" is the empty prompt, None leaves the run's own); `alternative`
    is another prompt, for mitigations that guide towards one.
    """

    id: str
    text: str
    negative: str | None = None
    alternative: str | None = None


def text_id(text: str) -> str:
    """Id of a prompt that has none of its own: from its text."""
    return "p" + hashlib.sha256(text.encode()).hexdigest()[:12]


def load_prompts(source: str) -> list[Prompt]:
    """Prompts in the source's order; repeated ones are dropped and counted in the log.

    From `.txt`, `.jsonl`, `.csv`, `.tsv` and `.parquet` files, COCO's captions JSON, a training run folder
    (the images that it showed, only the duplicated ones if it duplicated some), or captioned images;
    data/README.md shows the forms.

    Raises FileNotFoundError for a missing source; ValueError for an unknown one, one without prompts, a row
    that cannot be read, or one id on two prompts.
    """
    return list(distinct(list(read_prompts(source)), source))


def read_prompts(source: str) -> Iterator[Prompt]:
    """The prompts as they are read, repeated ones too; the errors are those of `load_prompts`.

    Text, JSON lines, comma-separated and parquet tables are never whole in memory.
    """
    if is_remote(source) and re.search(r"^[^?*{[]+\.(txt|jsonl|csv|tsv|json|parquet)$", source):
        source = str(fetched(source))
    none = True
    try:
        for prompt in prompts_of(source):
            if "\0" in prompt.text:
                raise ValueError(f"{source!r} is no UTF-8 text: it holds null characters, as UTF-16 does")
            none = False
            yield prompt
    except UnicodeDecodeError as error:
        raise ValueError(f"{source!r} is no UTF-8 text: {error}") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise FileNotFoundError(
            f"no prompt file {source[:60]!r}...: prompts themselves go to --prompt"
        ) from error
    if none:
        raise ValueError(f"{source!r} holds no prompt")


def prompts_of(source: str) -> Iterable[Prompt]:
    """The prompts, by the reader of the source's form; FileNotFoundError or ValueError without one."""
    path = Path(source)
    suffix = path.suffix.lower()
    if (path / "exposures.parquet").exists():
        return from_training_run(path)
    if is_prompt_parquet(source):
        return from_rows(path, parquet_rows(path, KNOWN, TEXT))
    if path.is_dir() or source.endswith(SHARD_SUFFIXES) or is_data(source):
        return from_captioned_images(source)
    if not path.exists():
        raise FileNotFoundError(f"no prompt file {source!r}")
    if suffix == ".txt":
        return (Prompt(text_id(line), line) for _, line in lines(path))
    readers = {".jsonl": json_rows, ".csv": table_rows, ".tsv": table_rows, ".json": coco_rows}
    if suffix not in readers:
        known = ".txt, .jsonl, .csv, .tsv, .parquet, COCO's captions .json, shards and folders"
        raise ValueError(f"{source!r}: only {known} are read")
    return from_rows(path, readers[suffix](path))


def source_fingerprint(source: str) -> str:
    """A digest of a source's options and of the names and contents of the files that `load_prompts` reads."""
    location, options = with_options(source)
    if location.startswith("hf:") and not is_remote(location):
        return digest(source)[:12]
    path = Path(location)
    if is_remote(location):
        files = [present(file) for file in matching_files(location)]
    elif path.is_dir():
        run = path / "exposures.parquet"
        files = [run] if run.exists() else files_below(path, Path.is_file)
    elif location.endswith((*SHARD_SUFFIXES, ".parquet")):
        files = [Path(file) for file in matching_files(location)]
    else:
        files = [path]
    if file := options.get("captions"):
        files.append(captions_file(file, path))
    contents = []
    for file in files:
        inside = file.is_relative_to(path) and file != path
        contents += [os.fsencode(file.relative_to(path) if inside else file.name), remembered_sha256(file)]
    return digest(json.dumps(options, sort_keys=True), *contents)[:12]


def inline_prompts(texts: list[str]) -> list[Prompt]:
    """Prompts given on the command line, ids from their texts; ValueError for an empty one, or none."""
    texts = [text.strip() for text in texts]
    if not texts or not all(texts):
        raise ValueError(f"an empty prompt, or none, was given: {texts}")
    return list(distinct([Prompt(text_id(text), text) for text in texts], "prompts"))


def distinct(prompts: Iterable[Prompt], source: str) -> Iterator[Prompt]:
    """Each prompt once; ValueError for two prompts of one id.

    `prompts` is gone through twice. Of all ids only hashes are held, 8 bytes each, and those that come again.
    """
    import numpy as np

    hashes, counts = np.unique(
        np.fromiter((hash(prompt.id) for prompt in prompts), np.int64), return_counts=True
    )
    again, by_id, repeated = set(hashes[counts > 1].tolist()), {}, 0
    for prompt in prompts:
        if hash(prompt.id) in again and prompt.id in by_id:
            other, repeated = by_id[prompt.id], repeated + 1
            if other != prompt:
                texts = [each.text if other.text != prompt.text else each[1:] for each in (other, prompt)]
                one, two = (shorten(repr(text), 80, placeholder="...") for text in texts)
                raise ValueError(f"{source!r}: id {prompt.id!r} has two prompts, {one} and {two}")
            continue
        if hash(prompt.id) in again:
            by_id[prompt.id] = prompt
        yield prompt
    if repeated:
        log.warning("%s: %d prompts are repeated and used once", source, repeated)


def without(prompts: Iterable[Prompt], memorized: Iterable[Prompt]) -> tuple[list[Prompt], int]:
    """The prompts that are not memorized, and how many were left out.

    Texts are compared by `same`; of several that are the same the first stays, with its id and so its noise.
    """
    prompts = list(prompts)
    left_out = {same(prompt.text) for prompt in memorized}
    kept: dict[str, Prompt] = {}
    for prompt in prompts:
        if same(prompt.text) not in left_out:
            kept.setdefault(same(prompt.text), prompt)
    return list(kept.values()), len(prompts) - len(kept)


def load_ordinary(source: str, memorized: Iterable[Prompt]) -> tuple[list[Prompt], int]:
    """`without` for a source's prompts; ValueError where all are memorized."""
    ordinary, left_out = without(load_prompts(source), memorized)
    if not ordinary:
        raise ValueError(f"all prompts of {source!r} are memorized: give others that are not")
    return ordinary, left_out


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


def from_rows(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Prompt]:
    for number, row in rows:
        try:
            yield from_row(row)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def from_row(row: dict[str, Any]) -> Prompt:
    """ValueError for an empty prompt, a field that is no text, or an id that cannot name a file."""
    text, key = words(row, TEXT), first(row, ID)
    if not text:
        raise ValueError("the prompt is empty")
    from_text = text_id(text)
    if not isinstance(key, str | int | float | None):
        raise ValueError(f"id {key!r} is neither text nor number")
    # 7.0 is what pandas makes of a 7 in a column with gaps
    own = from_text if key is None else safe_id(re.sub(r"^(\d+)\.0$", r"\1", str(key).strip()))
    return Prompt(own, text, words(row, NEGATIVE), words(row, ALTERNATIVE) or None)


def first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def words(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    value = first(row, names)
    if not isinstance(value, str | None):
        raise ValueError(f"{names[0]} {shorten(repr(value), 80, placeholder='...')} is no text")
    if value and value != clean(value):
        raise ValueError(f"{names[0]} {value[:80]!r} holds half a character, which no file can")
    return value and value.strip()


def from_training_run(folder: Path) -> Iterator[Prompt]:
    """What it showed: the duplicated images only, if it duplicated some; a stream duplicates nothing."""
    only = any(row.get("duplicated") for row in stream_exposures(folder))
    for row in stream_exposures(folder):
        if not row["times_shown"] or (only and not row["duplicated"]):  # a short run may not come to all
            continue
        try:
            yield Prompt(safe_id(row["id"]), row["caption"])
        except ValueError as error:
            raise ValueError(f"{folder / 'exposures.parquet'}: {error}") from error


def from_captioned_images(source: str) -> list[Prompt]:
    """FileNotFoundError for a folder without any."""
    folder = Path(source)
    if folder.is_dir() and not is_data(source):
        raise FileNotFoundError(
            f"{folder} holds no images or shards, and no exposures.parquet of a finished training run"
        )
    return [Prompt(safe_id(sample.id), sample.caption) for sample in load_captioned(source).samples]


def safe_id(key: str) -> str:
    """Ids name files: ValueError for one that could leave its folder."""
    if not key or re.search(r"^\.|[/\\\0\ud800-\udfff]", key):
        raise ValueError(f"prompt id {key!r} cannot name a file")
    return key


def same(text: str) -> str:
    """A text in lower case with single spaces: equal for captions that say the same."""
    return " ".join(text.casefold().split())


def spread(items: list[Any], count: int | None) -> list[Any]:
    """At most `count` items, evenly from the first to the last; None: all."""
    import numpy as np

    positions = np.linspace(0, len(items) - 1, min(count or len(items), len(items))).round().astype(int)
    return [items[position] for position in positions]
