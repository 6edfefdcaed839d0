"""What `python -m infer predict` takes of its trainer's and its scheduler's options, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.infer.predict import runs as predicting
from tests.infer.predict.runs import command, rows_of
from tests.infer.test_command_line import one_line

pytestmark = pytest.mark.usefixtures("one_thread")
predict = predicting.predict  # a fixture


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-true", "64", "16"])
def test_the_trainers_precision_is_refused(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture, precision: str
) -> None:
    """It changes images, and the run folder would not tell."""
    asked = command(tiny_pipeline, tmp_path / "out", 4, "--prompt", "a", "--trainer.precision", precision)
    told = one_line(asked, capsys)
    assert told == f"--trainer.precision {precision} is not for predict: use --model.dtype"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["null", "32", "32-true"])
def test_full_precision_is_the_trainers(predict: Callable[..., Path], precision: str) -> None:
    assert len(rows_of(predict("--prompt", "red square", "--trainer.precision", precision, steps=2))) == 1


@pytest.mark.parametrize(
    "option, value, told",
    [
        ("default_root_dir", "/nowhere", "/nowhere is not for predict: use --out"),
        ("logger", "true", "True is not for predict: the run folder holds all that there is to log"),
        ("limit_predict_batches", "0", "0 leaves nothing to make"),
    ],
)
def test_what_the_trainer_would_not_do_is_refused(
    tmp_path: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture, option: str, value: str, told: str
) -> None:
    """Before anything is made."""
    asked = command(tiny_pipeline, tmp_path / "out", 4, "--prompt", "a", f"--trainer.{option}", value)
    assert one_line(asked, capsys) == f"--trainer.{option} {told}"
    assert not (tmp_path / "out").exists()


def test_devices_that_are_none(
    tiny_pipeline: Path, tiny_shards: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By predict and by compare."""
    asked = command(tiny_pipeline, tmp_path / "out", 4, "--prompt", "a", "--trainer.devices", "abc")
    comparison = [
        "compare", "--pipeline", str(tiny_pipeline), "--prompts", str(tiny_shards), "--training",
        str(tiny_shards), "--clip", str(tiny_clip), "--mitigations", "none", "--out", str(tmp_path / "out"),
        "--accelerator", "cpu", "--devices", "abc",
    ]  # fmt: skip
    for arguments in (asked, comparison):
        assert one_line(arguments, capsys).startswith("trainer: `devices` selected with `CPUAccelerator`")


def test_steps_that_a_scheduler_cannot_take(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Without advice on options of others."""
    asked = command(tiny_pipeline, tmp_path / "out", 60, "--prompt", "a", "--model.scheduler", "lcm")
    told = one_line(asked, capsys)
    assert told.startswith("LCMScheduler cannot take 60 steps: ") and told.endswith("steps`: 60.")
