"""What `python -m infer predict` takes of its trainer's and its scheduler's options, and what it refuses."""

from pathlib import Path

import pytest

from tests.infer.predict import runs as predicting
from tests.infer.predict.runs import command
from tests.infer.test_command_line import one_line

pytestmark = pytest.mark.usefixtures("one_thread")
predict = predicting.predict  # a fixture


@pytest.mark.parametrize("option", ["precision=16", "default_root_dir=/nowhere"])
def test_what_other_options_decide_is_no_option_of_the_trainer(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture, option: str
) -> None:
    """`--model.dtype` changes images and stands in the run folder; `--out` names it."""
    error = one_line(
        command(tiny_pipeline, tmp_path / "out", 4, "--prompt", "a", f"--trainer.{option}"), capsys
    )
    assert f"--trainer.{option.split('=')[0]} is no option of predict" in error


def test_devices_that_are_none(
    tiny_pipeline: Path, tiny_shards: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By predict and by compare."""
    asked = command(tiny_pipeline, tmp_path / "out", 4, "--prompt", "a", "--trainer.devices", "abc")
    comparison = [
        "compare", "--model.pipeline", str(tiny_pipeline), "--prompts", str(tiny_shards), "--training",
        str(tiny_shards), "--clip", str(tiny_clip), "--mitigations", "none", "--out", str(tmp_path / "out"),
        "--trainer.accelerator", "cpu", "--trainer.devices", "abc",
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
