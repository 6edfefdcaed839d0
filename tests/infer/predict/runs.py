"""Runs of `python -m infer predict` with the tiny pipeline, what they leave, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from infer.__main__ import main
from tests.conftest import CAPTIONS
from tests.data.prompts.files import lines, write

STEPS = 6  # of the finished run
COSTS = ["seconds", "peak_memory_gib"]  # differ from run to run


def command(pipeline: Path, out: Path, steps: int, *options: str) -> list[str]:
    return [
        "predict", "--model.pipeline", str(pipeline), "--model.num_inference_steps", str(steps), "--out",
        str(out), "--trainer.accelerator", "cpu", *options,
    ]  # fmt: skip


def rows_of(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "samples.parquet")


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def write_prompts(path: Path, *rows: dict[str, Any]) -> str:
    return write(path, lines(*({"id": f"s{n}"} | row for n, row in enumerate(rows))))


def stock(pipe: Any, row: Any, steps: int = 4, **options: Any) -> np.ndarray:
    """The image that stock diffusers makes of a row's prompt and seed."""
    generator = torch.Generator().manual_seed(int(row.seed))
    image = pipe(row.prompt, generator=generator, num_inference_steps=steps, **options).images[0]
    return np.array(image, int)


def assert_stock(folder: Path, pipe: Any, steps: int = 4, **options: Any) -> None:
    """Every image of the run is the stock pipeline's, but for rounding."""
    images = pixels(folder)
    for row in rows_of(folder).itertuples():
        difference = images[Path(row.image).name] - stock(pipe, row, steps, **options)
        assert np.abs(difference).max() <= 1, row.prompt


def captions(tmp_path: Path) -> str:
    return write_prompts(tmp_path / "prompts.jsonl", *({"text": text} for text in CAPTIONS[:4]))


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """The error, which is all that is on stderr, in one line; the exit code is 1 or 2."""
    capsys.readouterr()
    assert main(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 400
    return error.removeprefix("error: ").rstrip("\n")


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.array(Image.open(path), int) for path in (folder / "images").iterdir()}


def assert_same_run(folder: Path, other: Path, tolerance: int = 0) -> None:
    """The same rows in the same order, but for what they cost, and the same images."""
    for name, key in (("samples", ["prompt_id", "sample"]), ("traces", ["prompt_id", "sample", "step"])):
        a, b = (pd.read_parquet(path / f"{name}.parquet") for path in (folder, other))
        assert not a.duplicated(key).any()
        pd.testing.assert_frame_equal(a.drop(columns=COSTS, errors="ignore"),
                                      b.drop(columns=COSTS, errors="ignore"), rtol=1e-3)  # fmt: skip
    a, b = pixels(folder), pixels(other)
    assert a.keys() == b.keys()
    assert all(np.abs(a[name] - b[name]).max() <= tolerance for name in a)
    assert not (folder / "parts").exists()
