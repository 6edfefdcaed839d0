"""Options of the training commands: ranges, Lightning's own, and what is refused, in one line."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from data.arguments import as_list
from tests.train import fits
from tests.train.fits import error_line, full, interrupt, short, unet
from train.__main__ import main

world = fits.world  # a fixture

REFUSED = {
    "a share of the data again and again": ({"trainer__overfit_batches": 1}, "give data.limit"),
    "weights in half precision": ({"trainer__precision": "bf16-true"}, "bf16-mixed"),
    "double precision": ({"trainer__precision": 64}, "bf16-mixed"),
    "no number of steps": ({"trainer__max_steps": None}, "trainer.max_steps must be set"),
    "Lightning's optimizer": ({"optimizer": "torch.optim.SGD"}, "--model.optimizer"),
    "a decay without room": ({"model__decay": "cosine", "model__warmup_steps": 1}, "max_steps (1)"),
    "one to mix": ({"model__embedding_mixup": 9, "data__batch_size": 1}, "raise data.batch_size"),
    "more steps than the schedule has": ({"monitor__num_inference_steps": 2000}, "within 1..1000"),
    "no such detector": ({"monitor__sscd": "no/such.pt"}, "no/such.pt"),
    "an unknown option": ({"model__lerning_rate": 1}, "lerning_rate"),
}
OUT_OF_RANGE = {
    "model__lr": -1,
    "model__lora_rank": 0,
    "model__betas": [1.5, 0.9],
    "model__caption_dropout": 1.1,
    "data__limit": 0,
    "ema__decay": 1.0,
    "monitor__threshold": 1,
    "monitor__stop_at_share": 1.5,
    "checkpoint_every": 0,
}


def last_line(world: Path, out: Path, capsys: pytest.CaptureFixture, settings: dict) -> str:
    """The error of a command that must leave nothing behind."""
    assert main(short(world, out / "run", data__cache=out / "cache", **settings)) in (1, 2)
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ") and not any("Traceback" in line for line in errors)
    assert not (out / "cache").exists() and not (out / "run/checkpoints").exists()
    return errors[-1]


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused(
    case: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Before anything is encoded."""
    settings, words = REFUSED[case]
    assert words in last_line(world, tmp_path, capsys, settings)


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_ranges_are_checked_by_the_parser(
    name: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = last_line(world, tmp_path, capsys, {name: OUT_OF_RANGE[name]})
    assert name.rpartition("__")[2] in line


def test_one_source_needs_no_brackets() -> None:
    for value in ("a b.tar", "it's.tar", "{0..3}.tar", "{0,3}.tar"):
        assert json.loads(as_list(value)) == [value]
    assert [as_list(value) for value in ("[a, b]", "null")] == ["[a, b]", "null"]


def test_a_trial_leaves_nothing_behind(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """--trainer.fast_dev_run: one step, with a cosine that has no room in it, and the monitor's images."""
    args = full(world, tmp_path / "run", trainer__fast_dev_run="true", trainer__accumulate_grad_batches=1)
    assert main(args) == 0
    assert "trial of 1 steps" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_lightnings_own_options_work(world: Path, tmp_path: Path) -> None:
    """Epochs of three batches, no validation, a logger beside ours, a time limit that is not reached."""
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(tmp_path / "mine")},
    }
    settings = {
        "trainer__max_steps": 8,
        "data__exposure": {"copies": 3, "duplicated_fraction": 0.5},
        "model__lr": 1e-3,
    }
    more = {
        "trainer__limit_train_batches": 3,
        "trainer__limit_val_batches": 0,
        "trainer__max_time": "00:01:00:00",
        "trainer__logger": logger,
        "trainer__callbacks": {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
    }
    assert main(short(world, tmp_path / "plain", **settings)) == 0
    assert main(short(world, tmp_path / "limited", **settings, **more)) == 0
    plain, limited = tmp_path / "plain", tmp_path / "limited"
    losses = [pd.read_csv(run / "metrics.csv").set_index("step")["loss"].tolist() for run in (plain, limited)]
    assert losses[0] == losses[1]  # each epoch continues the run's draws
    shown = [pd.read_parquet(run / "exposures.parquet")["times_shown"].tolist() for run in (plain, limited)]
    assert shown[0] == shown[1]
    assert list((tmp_path / "mine").rglob("metrics.csv"))


def test_a_run_that_was_cut_by_time_continues(world: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    settings = {"trainer__max_steps": 300, "data__cache": tmp_path / "cache"}
    assert main(short(world, run, trainer__max_time="00:00:00:01", **settings)) == 0
    assert "the same command continues" in capsys.readouterr().out
    steps = json.loads((run / "pipeline/training.json").read_text())["steps"]
    assert 0 < steps < 300
    assert main(short(world, run, trainer__max_time="00:00:00:03", **settings)) == 0  # in all starts together
    assert json.loads((run / "pipeline/training.json").read_text())["steps"] > steps


def test_a_constant_run_may_be_made_longer(world: Path, tmp_path: Path, capsys) -> None:
    """It ends as if it had been that long from the start; one with a cosine is refused in one line."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    settings = {"model__decay": "constant"}
    assert main(full(world, run, **settings, trainer__max_steps=4)) == 0
    assert main(full(world, run, **settings)) == main(full(world, whole, **settings)) == 0
    weights, others = unet(run / "pipeline"), unet(whole / "pipeline")
    assert all(torch.allclose(weights[key], others[key], atol=1e-5) for key in weights)
    shown = [pd.read_parquet(each / "exposures.parquet") for each in (run, whole)]
    pd.testing.assert_frame_equal(*shown)
    interrupt(full(world, tmp_path / "cosine"), 3)
    line = error_line(full(world, tmp_path / "cosine", trainer__max_steps=9), capsys)
    assert "trainer.max_steps: 8 -> 9; a cosine decay cannot be made longer" in line


def test_options_without_effect_are_named_and_the_run_goes_on(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"model__lora_alpha": 4, "trainer__default_root_dir": "x", "monitor__sscd_sha256": "0" * 64}
    assert main(short(world, tmp_path / "run", **settings)) == 0
    lines = " ".join(record.getMessage() for record in caplog.records)
    for option in ("model.lora_alpha", "trainer.default_root_dir", "monitor.sscd_sha256"):
        assert option in lines
    assert not Path("x").exists()
