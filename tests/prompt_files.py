"""Write what prompts are read from: text, tables, JSON lines, and the folder of a training run."""

import json
from pathlib import Path

import pandas as pd


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def exposures(folder: Path, duplicated: list[bool], times_shown: list[int]) -> str:
    ids = [f"s{number}" for number in range(len(duplicated))]
    captions = [f"caption {key}" for key in ids]
    pd.DataFrame(
        {"id": ids, "caption": captions, "duplicated": duplicated, "times_shown": times_shown}
    ).to_parquet(folder / "exposures.parquet")
    return str(folder)
