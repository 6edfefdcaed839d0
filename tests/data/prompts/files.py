"""Write what prompts are read from: text, tables, JSON lines, and the folder of a training run."""

import json
from pathlib import Path

import pandas as pd


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def exposures(folder: Path, duplicated: list[bool] | None, times_shown: list[int]) -> str:
    """Of a stream where it is not said which images are duplicated."""
    ids = [f"s{number}" for number in range(len(times_shown))]
    rows = {"id": ids, "caption": [f"caption {key}" for key in ids], "times_shown": times_shown}
    said = {} if duplicated is None else {"duplicated": duplicated}
    pd.DataFrame(rows | said).to_parquet(folder / "exposures.parquet")
    return str(folder)
