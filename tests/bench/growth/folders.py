"""Folders of any number of synthetic records: run folders, comparisons, training shards and prompt files."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import webdataset as wds
import yaml
from PIL import Image

from callbacks.predict.rows import TRACED
from infer.predict.run_folder import ROW_GROUP
from tests.infer.report.folders import write_about

SIDE, DISTINCT, SAMPLES = 8, 64, 4  # px; different images; images of a prompt
STEPS, PART = 50, 64  # of a trace; images of a part
ROWS = ROW_GROUP * 8  # of traces, written at a time


def png(random: np.random.Generator) -> bytes:
    data = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(data, "png")
    return data.getvalue()


def shard(path: Path, count: int) -> str:
    """Training images that all differ, and their captions, in one shard."""
    random = np.random.default_rng(1)
    with wds.TarWriter(str(path), encoder=False) as tar:
        for number in range(count):
            tar.write({"__key__": name(number), "png": png(random), "txt": text(number).encode()})
    return str(path)


def name(number: int) -> str:
    return f"p{number:07}"


def text(number: int) -> str:
    return f"picture number {number}"


def prompts(path: Path, count: int) -> str:
    """A prompt for each number."""
    lines = (json.dumps({"id": name(number), "text": text(number)}) for number in range(count))
    path.write_text("\n".join(lines))
    return str(path)


def samples(folder: Path, count: int, per_prompt: int = SAMPLES) -> pd.DataFrame:
    """Rows of a predict run whose images are a few files, which are written."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(min(count, DISTINCT)):
        (folder / f"images/{number}.png").write_bytes(png(random))
    numbers = np.arange(count) // per_prompt
    own = random.uniform(0, 1, count)
    return pd.DataFrame({
        "prompt_id": [*map(name, numbers)], "sample": np.arange(count) % per_prompt,
        "prompt": [*map(text, numbers)], "negative_prompt": None, "alternative_prompt": None,
        "seed": np.arange(count), "mitigation": folder.name, "guidance_scale": 7.5, "watched": None,
        "transition_timestep": np.nan, "gated": False, "nfe": 100, "gradient_passes": 0, "seconds": 0.5,
        "peak_memory_gib": 1.0, "image": [f"images/{number % DISTINCT}.png" for number in range(count)],
        "failed_step": np.full(count, np.nan), "similarity_own": own, "similarity_top": own,
        "clip_score": 0.3,
    })  # fmt: skip


def traces(rows: pd.DataFrame) -> pd.DataFrame:
    """A curve of each row."""
    keys = rows[["prompt_id", "sample"]].loc[rows.index.repeat(STEPS)].reset_index(drop=True)
    step = np.tile(np.arange(STEPS), len(rows))
    return keys.assign(step=step, timestep=981.0 - 20 * step, **dict.fromkeys(TRACED, 0.5))


def write(rows: pd.DataFrame, folder: Path) -> None:
    """The tables of a finished run."""
    rows.to_parquet(folder / "samples.parquet", index=False, row_group_size=ROW_GROUP)
    traces(rows).to_parquet(folder / "traces.parquet", index=False, row_group_size=ROWS)


def finished(folder: Path, count: int) -> str:
    """A predict run that can be scored."""
    scores = ["similarity_own", "similarity_top", "clip_score"]
    rows = samples(folder, count).drop(columns=scores)
    write(rows, folder)
    (folder / "summary.json").write_text("{}")
    config = {"mitigation": folder.name, "mitigations": [], "pipeline": "synthetic"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder)


def comparison(folder: Path, count: int) -> str:
    """A comparison of two mitigations that a page can be made of."""
    table = []
    for mitigation in ("none", "stp"):
        write(rows := samples(folder / mitigation, count), folder / mitigation)
        means = {f"{column}_mean": rows[column].mean() for column in ("similarity_own", "clip_score")}
        table.append({"mitigation": mitigation, "images": count, **means, "nfe_mean": 100.0})
    pd.DataFrame(table).to_parquet(folder / "comparison.parquet")
    write_about(folder)
    (folder / "training").mkdir()
    for number in range(-(-count // SAMPLES)):
        image = folder / f"none/images/{number % min(count, DISTINCT)}.png"
        os.link(image, folder / f"training/{name(number)}.png")
    return str(folder)


def interrupted(folder: Path, count: int) -> str:
    """A run that was killed after its last batch: all images are there, and all rows in parts."""
    rows = samples(folder, count, 1).drop(columns=["similarity_own", "similarity_top", "clip_score"])
    (folder / "parts").mkdir()
    for number, start in enumerate(range(0, count, PART)):
        part = rows[start : start + PART].reset_index(drop=True)
        stem = folder / f"parts/{number:032x}.{len(part)}"
        traces(part).to_parquet(f"{stem}.traces.parquet", index=False)
        part.to_parquet(f"{stem}.samples.parquet", index=False)
    return str(folder)
