"""Prompts in every form that people have: text, JSON lines, tables, training runs, captioned images."""

import errno
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import shorten

from data.captioned import load_captioned
from data.prompts.prompt import KNOWN, TEXT, Prompt, from_rows, safe_id, same, text_id
from data.prompts.tables import coco_rows, is_prompt_parquet, parquet_rows
from data.prompts.text_files import json_rows, lines, table_rows
from data.remote import fetched, is_remote
from data.sources.layouts import is_data
from data.sources.shards import SHARD_SUFFIXES
from data.table_files import stream_exposures

log = logging.getLogger(__name__)


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
