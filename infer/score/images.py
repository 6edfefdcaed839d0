"""Images of other tools: each with its prompt, as rows that are scored like those of a predict run."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from data.files import write_json
from data.prompts import same, table_rows, text_id
from data.sources.rows import images_below
from infer.predict.run_folder import write_table

FILE = ("file_name", "file", "image", "path", "filename")  # what a table's column of files may be called
TEXT = ("prompt", "caption", "text")
NUMBERS = re.compile(r"^(?:\d+[-_]+)*(?:\d+$)?|[-_]+\d+$|\s*\(\d+\)$")  # that count images


def prompt_of_name(stem: str) -> str:
    """The prompt that a file's name is: `00012-a red car_3` is "a red car"; "" for numbers alone."""
    return " ".join(NUMBERS.sub("", stem).replace("_", " ").split())


def prompts_of_table(table: Path) -> dict[str, str]:
    """Prompts by file, as the table names them; ValueError without a column of files."""
    prompts = {}
    for number, row in table_rows(table):
        file = next((row[name] for name in FILE if row.get(name)), None)
        if file is None:
            raise ValueError(f"{table}, line {number}: no file; give a column {' or '.join(FILE)}")
        prompts[file.replace("\\", "/").removeprefix("./")] = next(
            (row[name] for name in TEXT if row.get(name)), ""
        )
    return prompts


def image_rows(folder: Path, table: Path | None = None) -> tuple[pd.DataFrame, int]:
    """A row for each image file below the folder, and how many of them the table does not name.

    The prompt is that of the table, by the file's way below the folder or by its name; without one it is the
    file's name. Images of one prompt are its samples. FileNotFoundError without images.
    """
    paths = images_below(folder) if folder.is_dir() else []
    if not paths:
        raise FileNotFoundError(f"no images in {str(folder)!r}: give a folder of .png, .jpg or .webp files")
    prompts = prompts_of_table(table) if table else {}
    names = Counter(path.name for path in paths)
    samples: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    unnamed = 0
    for path in paths:
        prompt = prompts.get(path.relative_to(folder).as_posix())
        if prompt is None and names[path.name] == 1:
            prompt = prompts.get(path.name)
        if prompt is None:
            unnamed, prompt = unnamed + 1, prompt_of_name(path.stem)
        key = text_id(same(prompt))
        rows.append({"prompt_id": key, "sample": samples[key], "prompt": prompt,
                     "image": str(path.resolve())})  # fmt: skip
        samples[key] += 1
    unknown = {"seed": "unknown", "transition_timestep": math.nan, "gated": False, "nfe": math.nan,
               "seconds": math.nan, "failed_step": None}  # fmt: skip
    return pd.DataFrame(rows).assign(**unknown), unnamed if table else 0


def write_rows(folder: Path, table: Path | None, out: Path) -> int:
    """Write the rows to `out` as a predict run has them; how many images the table does not name.

    ValueError where `out` holds a predict run, whose rows would be lost.
    """
    if (out / "config.yaml").exists():
        raise ValueError(f"{out} holds a predict run: choose another folder")
    rows, unnamed = image_rows(folder, table)
    out.mkdir(parents=True, exist_ok=True)
    write_table(rows, out / "samples.parquet")
    write_json(out / "summary.json", {})
    return unnamed
