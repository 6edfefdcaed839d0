"""What `python -m infer predict` takes of its trainer's and its scheduler's options, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.infer.predict.runs import captions, command, pixels, refused, rows_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("option", ["precision=16", "default_root_dir=/nowhere"])
def test_what_other_options_decide_is_no_option_of_the_trainer(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture, option: str
) -> None:
    """`--model.dtype` changes images and stands in the run folder; `--out` names it."""
    error = refused(
        command(tiny_pipeline, tmp_path / "out", 4, "--prompt", "a", f"--trainer.{option}"), capsys
    )
    assert f"--trainer.{option.split('=')[0]} is no option" in error


@pytest.mark.parametrize(
    "options, images",
    [
        (["--trainer.enable_progress_bar", "false"], 4),
        (["--trainer.fast_dev_run", "true"], 2),
        (["--trainer.limit_predict_batches", "1"], 2),
        (["--trainer.logger", "true"], 4),
        (["--wandb", "offline", "--wandb_tags", "a,b"], 4),
    ],
)
def test_lightnings_habits(
    predict: Callable[..., Path], tmp_path: Path, options: list[str], images: int
) -> None:
    """What a batch gave is written, and the next run generates the rest."""
    out = predict("--prompts", captions(tmp_path), "--batch_size", "2", *options, steps=2)
    assert len(rows_of(out)) == len(pixels(out)) == images
    assert len(rows_of(predict("--prompts", captions(tmp_path), "--batch_size", "2", steps=2))) == 4


def test_no_batch_at_all_is_no_error(predict: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    predict("--prompt", "red square", "--trainer.limit_predict_batches", "0")
    assert "no images\n" in capsys.readouterr().out


def test_one_slurm_task_for_two_devices_is_refused(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would leave one of them idle without a word."""
    for name, value in {
        "NTASKS": 1,
        "PROCID": 0,
        "LOCALID": 0,
        "JOB_ID": 1,
        "JOB_NAME": "x",
        "NODEID": 0,
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    error = refused(command(tiny_pipeline, tmp_path / "out", 4, "--prompt", "a", *two), capsys)
    assert "SLURM" in error and "ntasks" in error


def test_a_mitigation_among_the_callbacks_is_named(predict: Callable[..., Path], tmp_path: Path) -> None:
    """It is not `none`, the reference of every difference."""
    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer: {callbacks: [{class_path: callbacks.mitigations.presets.StaticTransition}]}\n"
    )
    out = predict("--prompt", "red square", "--config", str(config))
    assert list(rows_of(out)["mitigation"]) == ["StaticTransition"]
    assert rows_of(out)["transition_timestep"].notna().all()


def test_devices_that_are_none(
    tiny_pipeline: Path, tiny_shards: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By predict and by compare."""
    given = command(tiny_pipeline, tmp_path / "out", 4, "--prompt", "a", "--trainer.devices", "abc")
    comparison = [
        "compare", "--model.pipeline", str(tiny_pipeline), "--prompts", str(tiny_shards), "--training",
        str(tiny_shards), "--clip", str(tiny_clip), "--mitigations", "none", "--out", str(tmp_path / "out"),
        "--trainer.accelerator", "cpu", "--trainer.devices", "abc",
    ]  # fmt: skip
    for arguments in (given, comparison):
        assert refused(arguments, capsys).startswith("trainer: `devices` selected with `CPUAccelerator`")


def test_steps_that_a_scheduler_cannot_take(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Without advice on options of others."""
    given = command(tiny_pipeline, tmp_path / "out", 60, "--prompt", "a", "--model.scheduler", "lcm")
    error = refused(given, capsys)
    assert error.startswith("LCMScheduler cannot take 60 steps: ") and error.endswith("steps`: 60.")
