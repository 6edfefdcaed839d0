"""Short fits as a user starts them: their arguments, processes, and what they leave."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.regimes.exposure import Exposure
from tests.conftest import ROOT
from tests.processes import Command, until
from train.__main__ import main

EXPOSURE = Exposure(copies=3, duplicated_fraction=0.5, ordinary_share=0.5)
STEPS, BATCH, ACCUMULATED = 8, 4, 2
USELESS = ("torchvision", "bitsandbytes", "anonymous", "FLOPs", "TPU available", "Tip:")
DRAWS = STEPS * BATCH * ACCUMULATED  # 4 passes of 2 x 3 duplicated, 2 others and 8 ordinary images


def write_folder(folder: Path, captions: dict[str, str]) -> Path:
    """16 px images, each with its caption beside it; the same pixels for the same position."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for key, caption in captions.items():
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{key}.png")
        (folder / f"{key}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def world(
    one_thread: None, tiny_pipeline: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder with `model`, `images.tar`, `ordinary` and the cache that most runs share."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "model").symlink_to(tiny_pipeline)
    (folder / "images.tar").symlink_to(tiny_shards)
    write_folder(folder / "ordinary", {f"o{number}": f"ordinary {number}" for number in range(5)})
    return folder


def short(world: Path, out: Path, **settings) -> list[str]:
    """Arguments of the shortest fit; `settings` change it, None takes one away; `__` stands for a dot."""
    given = {
        "out": out,
        "model__pipeline": world / "model",
        "data__sources": [str(world / "images.tar")],
        "data__cache": world / "cache",
        "data__batch_size": BATCH,
        "trainer__max_steps": 1,
        "trainer__accelerator": "cpu",
        "trainer__log_every_n_steps": 1,
        "trainer__enable_progress_bar": "false",
        "monitor__count": 2,
        "monitor__num_inference_steps": 2,
    } | settings
    args = ["fit"]
    for key, value in given.items():
        if value is not None:
            text = json.dumps(value) if isinstance(value, (list, dict)) else str(value)
            args += [f"--{key.replace('__', '.')}", text]
    return args


def full(world: Path, out: Path, **settings) -> list[str]:
    """Arguments of a fit with all that could go otherwise after an interruption."""
    chosen = {
        "data__limit": 4,
        "data__ordinary": [str(world / "ordinary")],
        "data__exposure": {"copies": 3, "duplicated_fraction": 0.5, "ordinary_share": 0.5},
        "data__flip": "true",
        "model__lr": 1e-3,
        "model__warmup_steps": 2,
        "model__decay": "cosine",
        "model__caption_dropout": 0.25,
        "trainer__max_steps": STEPS,
        "trainer__accumulate_grad_batches": ACCUMULATED,
        "trainer__gradient_clip_val": 1.0,
        "checkpoint_every": 2,
        "monitor__every_n_steps": 4,
        "ema__decay": 0.45,
    }
    return short(world, out, **(chosen | settings))


def callback(name: str, **init_args: Any) -> dict:
    """A callback of tests/train/spy.py, for `trainer.callbacks`."""
    return {"class_path": f"tests.train.spy.{name}", "init_args": init_args}


def spy(folder: Path) -> dict:
    return callback("Spy", folder=str(folder))


def poison(step: int, after: bool = False) -> dict:
    return callback("Poison", step=step, after=after)


def stop(step: int | None, flag: Path | None = None) -> dict:
    return callback("Stop", step=step, flag=flag and str(flag))


def start(args: list[str], ranks: int = 1) -> Command:
    """The command as a process of its own, or as so many ranks."""
    return Command("train", args, ranks)


def run_process(args: list[str], code: int = 0, ranks: int = 1) -> str:
    """Run the command to its end, as `start` does; what it writes to stderr."""
    command = start(args, ranks)
    assert command.exit_codes() == [code] * ranks, command.errors()
    return useful(command.errors())


def run_python(args: list[str]) -> str:
    """Run `python -m train` on them; what it writes to stderr."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "train", *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return useful(done.stderr)


def useful(errors: str) -> str:
    """The text; AssertionError if it has a line that no user needs."""
    assert not [line for line in errors.splitlines() if any(map(line.__contains__, USELESS))]
    return errors


def interrupt(args: list[str], step: int | None) -> None:
    """Start a run that fails at the end of a step, or (None) before its results are written."""
    with pytest.raises(RuntimeError, match="stopped by the test"):
        main([*args, "--trainer.callbacks", json.dumps([stop(step)])])


def error_line(args: list[str], capsys: pytest.CaptureFixture, code: int = 1) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert main(args) == code
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    line = errors.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def wait_for(flag: Path, command: Command) -> None:
    """Until a process touches the flag."""
    until(lambda: flag.exists() or command.ended(), 120, command.errors)
    assert flag.exists(), command.errors()


def unet(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet/diffusion_pytorch_model.safetensors")


def spied(folder: Path, rank: int = 0) -> list[dict]:
    """In batch order."""
    paths = sorted(folder.glob(f"{rank}-*.pt"), key=lambda path: int(path.stem.split("-")[1]))
    return [torch.load(path) for path in paths]


def planned(exposure: Exposure, images: int, ordinary: int, draws: int) -> list[int]:
    return list(islice(exposure.stream(images, ordinary, seed=0), draws))


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """Run folder of the full fit, never interrupted; `world/spied` is what it saw."""
    out = world / "whole"
    assert main(full(world, out, trainer__callbacks=[spy(world / "spied")])) == 0
    return out


def assert_same_run(one: Path, other: Path) -> None:
    pd.testing.assert_frame_equal(*(pd.read_parquet(out / "exposures.parquet") for out in (one, other)))
    pd.testing.assert_frame_equal(*(pd.read_csv(out / "metrics.csv") for out in (one, other)))
    assert sorted(path.name for path in one.rglob("*")) == sorted(path.name for path in other.rglob("*"))
    torch.testing.assert_close(unet(one / "pipeline"), unet(other / "pipeline"), atol=1e-5, rtol=0)
