"""When a run folder equals that of an uninterrupted run.

The same files, each with the same content. Left out is, here and nowhere else:

- times and memory: columns and keys with `seconds` or `memory` in their names;
- the numbers of pages (.html, .md, .tex), which are those of the tables beside them, and which one is best;
- the commit of the code: no run of `tests.faults.cases` knows it.

Images are compared by their bytes, tables by their rows in order and their types, checkpoints and weights
by every number.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

COST = re.compile("seconds|memory")
NUMBER = re.compile(r"[-+−\d.e]*\d")


def differences(folder: Path, whole: Path) -> list[str]:
    """What differs, a line each."""
    ours, theirs = files_below(folder), files_below(whole)
    lines = [f"{name} is missing" for name in sorted(theirs - ours)]
    lines += [f"{name} is there" for name in sorted(ours - theirs)]
    for name in sorted(ours & theirs):
        if not same(content(folder / name), content(whole / name)):
            lines.append(f"{name} differs")
    return lines


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def content(path: Path) -> Any:
    """What is compared of a file."""
    match path.suffix:
        case ".parquet":
            return without_costs(pd.read_parquet(path))
        case ".csv":
            return without_costs(pd.read_csv(path))
        case ".ckpt":
            return dict(leaves(torch.load(path, map_location="cpu", weights_only=True)))
        case ".json":
            return dict(leaves(json.loads(path.read_text())))
        case ".html" | ".md" | ".tex":
            return NUMBER.sub("0", path.read_text().replace(' class="best"', ""))
    return path.read_bytes()


def without_costs(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[[name for name in rows if not COST.search(name)]]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers, texts and tensors of nested dicts and lists, without costs."""
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}.{key}")
    elif not COST.search(name):
        yield name, value


def same(one: Any, other: Any) -> bool:
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other or one != one and other != other
