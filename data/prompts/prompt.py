"""One prompt: its id, its text, and how a row of any table becomes one."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from data.sources.rows import clean

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


def safe_id(key: str) -> str:
    """Ids name files: ValueError for one that could leave its folder."""
    if not key or re.search(r"^\.|[/\\\0\ud800-\udfff]", key):
        raise ValueError(f"prompt id {key!r} cannot name a file")
    return key


def same(text: str) -> str:
    """A text in lower case with single spaces: equal for captions that say the same."""
    return " ".join(text.casefold().split())


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
