"""A finished predict run on the tiny model, and what two of them have in common."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from infer.__main__ import main
from tests.conftest import CAPTIONS

STEPS = 6
COSTS = ["seconds", "peak_memory_gib"]  # differ from run to run


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prompts with ids."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": f"s{n}", "text": CAPTIONS[n]}) + "\n" for n in range(3)))
    return path


@pytest.fixture(scope="module")
def arguments(tiny_pipeline: Path, prompts: Path) -> list[str]:
    """Six images with delayed guidance."""
    return [
        "predict", "--model.pipeline", str(tiny_pipeline), "--model.num_inference_steps", str(STEPS),
        "--prompts", str(prompts), "--samples_per_prompt", "2", "--batch_size", "4",
        "--trainer.accelerator", "cpu", "--mitigation", "stp",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(arguments: list[str], one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, for reading."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*arguments, "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The same, for changing."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


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
