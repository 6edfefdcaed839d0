"""Prompts from files: plain text, JSON lines with captions, or the duplicated images of a training run."""

import hashlib
import json
import logging
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
    """Read prompts in file order; a text that comes again is dropped, counted and reported.

    - `*.txt`: a prompt a line. `*.jsonl`: {"caption" or "prompt" or "text": ..., "id": optional} a line.
    - a training run folder: the captions of the images it duplicated (`exposures.parquet`), with their ids.

    Raises FileNotFoundError for a missing source, ValueError for an empty or unknown one, or for one id on two texts.
    """
    path = Path(source)
    if path.is_dir():
        prompts = from_training_run(path)
    elif not path.exists():
        raise FileNotFoundError(f"no prompt file {source!r}")
    elif path.suffix == ".txt":
        lines = (line.strip() for line in path.read_text().splitlines())
        prompts = [Prompt(text_id(line), line) for line in lines if line]
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


def from_json_lines(path: Path) -> list[Prompt]:
    prompts = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = next(row[key] for key in ("caption", "prompt", "text") if key in row)
        except (json.JSONDecodeError, StopIteration, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: not an object with a caption, prompt or text"
            ) from error
        prompts.append(Prompt(safe_id(str(row["id"])) if "id" in row else text_id(text), text))
    return prompts


def from_training_run(folder: Path) -> list[Prompt]:
    import pandas as pd

    path = folder / "exposures.parquet"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is no finished training run: it has no exposures.parquet")
    rows = pd.read_parquet(path)
    return [Prompt(safe_id(row.id), row.caption) for row in rows[rows["duplicated"]].itertuples()]


def safe_id(key: str) -> str:
    """Ids name files: ValueError for one that could leave its folder."""
    if not key or "/" in key or "\\" in key or key.startswith(".") or "\0" in key:
        raise ValueError(f"prompt id {key!r} cannot name a file")
    return key
