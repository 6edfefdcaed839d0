"""Runs of `python -m infer predict` with the tiny pipeline, and what they leave: what its tests share."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from infer.__main__ import main
from tests.conftest import CAPTIONS
from tests.data.prompt_files import lines, write
from tests.infer.predict.finished_run import pixels


@pytest.fixture
def predict(tiny_pipeline: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the command with options; the run folder. A later `--model.pipeline` or `--out` wins."""

    def run(*options: str, steps: int = 4) -> Path:
        assert main(command(tiny_pipeline, tmp_path / "run", steps, *options)) == 0
        return Path(options[options.index("--out") + 1]) if "--out" in options else tmp_path / "run"

    return run


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


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What we and those who embed the prompts log as a warning or worse, kept from the root logger or not."""
    embedders = ("diffusers", "transformers")
    for name in embedders:
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)

    def records() -> list[str]:
        return [
            record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
            and record.name.split(".")[0] in (*embedders, "infer", "data", "callbacks")
        ]  # fmt: skip

    return records
