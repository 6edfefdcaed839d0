"""Options of the training commands that would do nothing are refused, in a line that says what to use."""

from pathlib import Path

import pytest

from tests.train import fits as fitting
from tests.train.fits import short
from train.__main__ import main
from train.trainer_options import as_lists

world = fitting.world  # a fixture

REFUSED = {
    "a logger": ({"trainer__logger": "false"}, "metrics.csv is always written"),
    "another folder": ({"trainer__default_root_dir": "x"}, "use --out"),
    "epochs": ({"trainer__max_epochs": 1}, "trainer.max_steps long"),
    "a time": ({"trainer__max_time": "00:01:00:00"}, "the same command goes on"),
    "a trial run": ({"trainer__fast_dev_run": "true"}, "`plan`"),
    "one batch an epoch": ({"trainer__limit_train_batches": 1}, "give trainer.max_steps"),
    "a share of the batches": ({"trainer__limit_train_batches": 0.5}, "give trainer.max_steps"),
    "a batch again and again": ({"trainer__overfit_batches": 1}, "give data.limit"),
    "no checkpoints": ({"trainer__enable_checkpointing": "false"}, "gone on with"),
    "weights in half precision": ({"trainer__precision": "bf16-true"}, "bf16-mixed"),
    "Lightning's optimizer": ({"optimizer": "torch.optim.SGD"}, "--model.optimizer"),
    "a checkpoint every 0 steps": ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
    "a rate of no number": ({"model__lr": ".nan"}, "lr must be above 0"),
    "a rate below 0": ({"model__lr": -1}, "lr must be above 0"),
    "double precision": ({"trainer__precision": 64}, "bf16-mixed"),
    "a validation": ({"trainer__num_sanity_val_steps": 2}, "--grid"),
    "a decay without room": ({"model__decay": "cosine", "model__warmup_steps": 1}, "max_steps (1)"),
    "a LoRA of nothing": ({"model__lora_rank": 2, "model__lora_alpha": 0}, "lora_alpha must be above 0"),
    "one to mix": ({"model__embedding_mixup": 9, "data__batch_size": 1}, "raise data.batch_size"),
    "betas above 1": ({"model__betas": [1.5, 0.9]}, "betas must be in [0, 1)"),
    "a decay below 0": ({"model__weight_decay": -1}, "weight_decay must be at least 0"),
    "a side of nothing": ({"data__resolution": 0}, "data.resolution must be at least 1"),
    "a seed below 0": ({"data__seed": -1}, "data.seed must be at least 0"),
    "images of no step": ({"grid__num_inference_steps": 0}, "grid.num_inference_steps must be at least 1"),
    "more steps than the schedule has": ({"grid__num_inference_steps": 2000}, "schedule has 1000 steps"),
    "noise without captions": ({"model__caption_dropout": 1, "model__embedding_noise": 1}, "caption_dropout"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_do_nothing_is_refused(
    case: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Before anything is encoded."""
    settings, words = REFUSED[case]
    assert main(short(world, tmp_path / "run", data__cache=tmp_path / "cache", **settings)) in (1, 2)
    errors = capsys.readouterr().err.strip().splitlines()
    assert words in errors[-1] and errors[-1].startswith("error: ")
    assert not any("Traceback" in line or "usage" in line for line in errors)
    assert not (tmp_path / "cache").exists() or "schedule" in words  # known with the model's scheduler


def test_one_source_needs_no_brackets() -> None:
    names = ("--data.sources",)
    assert as_lists(["--data.sources", "a b.tar", "--x", "1"], names) == [
        "--data.sources",
        "['a b.tar']",
        "--x",
        "1",
    ]
    assert as_lists(["--data.sources=it's.tar"], names) == ["--data.sources=['it''s.tar']"]
    assert as_lists(["--data.sources", "[a, b]"], names) == ["--data.sources", "[a, b]"]
    assert as_lists(["--data.sources", "null"], names) == ["--data.sources", "null"]
    assert as_lists(["--data.sources", "{0..3}.tar"], names) == ["--data.sources", "['{0..3}.tar']"]


def test_a_parse_error_is_one_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for settings, words in (
        ({"model__lerning_rate": 1}, "--model.lerning_rate is no option of fit"),
        ({"trainer__max_steps": "x"}, "--trainer.max_steps: expected int, not x"),
        ({"data__exposure": {"copies": "two"}}, "--data.exposure.copies"),
    ):
        assert main(short(world, tmp_path / "run", **settings)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line


def test_usual_values_may_be_said(world: Path, tmp_path: Path) -> None:
    """And a callback alone, as Lightning takes it."""
    spy = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    settings = {
        "trainer__limit_train_batches": 1.0,
        "trainer__overfit_batches": 0,
        "trainer__callbacks": [spy],
    }
    assert main(short(world, tmp_path / "run", **settings)) == 0
    config = tmp_path / "one.yaml"
    config.write_text("trainer: {callbacks: {class_path: lightning.pytorch.callbacks.LearningRateMonitor}}")
    assert main([*short(world, tmp_path / "other"), "--config", str(config)]) == 0
