"""Prompts from files: plain text, JSON lines with captions, or the duplicated images of a training run."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)


class Prompt(NamedTuple):
    """An id that does not depend on the order of the file, and the text."""

    id: str
    text: str


def text_id(text: str) -> str:
    """Id of a prompt that has none of its own: from its text."""
    return "p" + hashlib.sha256(text.encode()).hexdigest()[:12]


def load_prompts(source: str) -> list[Prompt]:
    """Read prompts in file order; one that comes again is dropped, counted and reported.

    - `*.txt`: a prompt a line. `*.jsonl`: {"caption" or "prompt" or "text": ..., "id": optional} a line.
    - a training run folder: captions and ids of the images it duplicated (`exposures.parquet`), or of all
      that it was shown if it duplicated none.

    Raises FileNotFoundError for a missing source, ValueError for an empty or unknown one, or one id on two
    texts.
    """
    path = Path(source)
    if path.is_dir():
        prompts = from_training_run(path)
    elif not path.exists():
        raise FileNotFoundError(f"no prompt file {source!r}")
    elif path.suffix == ".txt":
        prompts = [Prompt(text_id(line), line) for _, line in lines(path)]
    elif path.suffix == ".jsonl":
        prompts = from_json_lines(path)
    else:
        raise ValueError(f"prompt file {source!r}: only .txt, .jsonl and training run folders are read")
    if not prompts:
        raise ValueError(f"{source!r} holds no prompt")
    distinct: dict[str, Prompt] = {}
    for prompt in prompts:
        other = distinct.setdefault(prompt.id, prompt)
        if other.text != prompt.text:
            raise ValueError(f"{source!r}: id {prompt.id!r} stands on {other.text!r} and on {prompt.text!r}")
    if len(distinct) < len(prompts):
        log.warning(
            "%s: %d prompts come more than once and are used once", source, len(prompts) - len(distinct)
        )
    return list(distinct.values())


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, stripped, without blank ones. Only a newline ends one: captions may hold U+2028."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line := line.strip():
                yield number, line


def from_json_lines(path: Path) -> list[Prompt]:
    prompts = []
    for number, line in lines(path):
        try:
            row = json.loads(line)
            text = next(row[key] for key in ("caption", "prompt", "text") if key in row).strip()
        except (json.JSONDecodeError, StopIteration, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: not an object with a caption, prompt or text"
            ) from error
        if not text:
            raise ValueError(f"{path}, line {number}: the prompt is empty")
        prompts.append(Prompt(text_id(text) if row.get("id") is None else safe_id(str(row["id"])), text))
    return prompts


def from_training_run(folder: Path) -> list[Prompt]:
    import pandas as pd

    path = folder / "exposures.parquet"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is no finished training run: it has no exposures.parquet")
    rows = pd.read_parquet(path)
    chosen = rows["duplicated"] if rows["duplicated"].any() else rows["times_shown"] > 0
    return [Prompt(safe_id(row.id), row.caption) for row in rows[chosen].itertuples()]


def safe_id(key: str) -> str:
    """Ids name files: ValueError for one that could leave its folder."""
    if not key or "/" in key or "\\" in key or key.startswith(".") or "\0" in key:
        raise ValueError(f"prompt id {key!r} cannot name a file")
    return key
