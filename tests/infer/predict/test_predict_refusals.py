"""Which run gets a folder, and which mitigation an option means; all else is one clear error."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from infer.__main__ import main
from tests.conftest import ROOT
from tests.infer.predict.runs import STEPS, pixels, refused, times

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "choice, name",
    [
        (["--mitigation", str(ROOT / "configs/mitigation/stp.yaml")], "stp"),
        (["--mitigation=stp"], "stp"),
        (["--mitigation", "StaticTransition", "--mitigation.timestep", "500"], "StaticTransition"),
        (["--mitigation=callbacks.mitigations.static_transition.StaticTransition"], "StaticTransition"),
    ],
)
def test_every_way_to_name_a_mitigation_gives_the_same(
    arguments: list[str], finished: Path, tmp_path: Path, choice: list[str], name: str
) -> None:
    assert main([*arguments[:-2], *choice, "--out", str(tmp_path)]) == 0
    rows, expected = (pd.read_parquet(path / "samples.parquet") for path in (tmp_path, finished))
    assert set(rows["mitigation"]) == {name}
    columns = ["prompt_id", "seed", "transition_timestep", "nfe"]
    pd.testing.assert_frame_equal(rows[columns], expected[columns])
    assert all(np.array_equal(image, pixels(tmp_path)[key]) for key, image in pixels(finished).items())


def test_a_preset_stands_for_its_file_only_where_it_is_the_mitigation(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder may have its name; and options change it."""
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--mitigation.guidance_before=-2", "--limit", "1", "--out", "stp"]) == 0
    rows = pd.read_parquet("stp/samples.parquet")
    assert len(rows) == 2 and set(rows["nfe"]) == {2 * STEPS}


# Refusals


@pytest.mark.parametrize(
    "change, named",
    [
        (["--seed", "1"], "seed: 0 -> 1"),
        (["--model.guidance_scale", "3"], "guidance_scale: 7.5 -> 3.0"),
        (["--mitigation", "none"], "mitigation: 'stp' -> 'none'"),
        (["--mitigation.timestep", "600"], "mitigations.0.timestep: 500.0 -> 600.0)"),
    ],
)
def test_a_folder_of_another_run_is_left_alone(
    finished: Path, arguments: list[str], capsys: pytest.CaptureFixture, change: list[str], named: str
) -> None:
    """And what is different is said."""
    before = times(finished)
    error = refused([*arguments, *change, "--out", str(finished)], capsys)
    assert "holds a different run" in error and named in error
    assert times(finished) == before


def test_other_prompts_under_the_same_name_are_another_run(
    copy: Path, arguments: list[str], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    original = prompts.read_text()
    prompts.write_text(original.replace("red square", "red circle"))
    try:
        assert "prompts_sha256" in refused([*arguments, "--out", str(copy)], capsys)
    finally:
        prompts.write_text(original)


def test_a_model_trained_again_under_the_same_name_is_another_run(
    copy: Path, arguments: list[str], tiny_pipeline: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its old images would be reported as its own. Only a weight in the middle of a file differs."""
    weights = tiny_pipeline / "unet/diffusion_pytorch_model.safetensors"
    original = weights.read_bytes()
    half = len(original) // 2
    weights.write_bytes(original[:half] + bytes([original[half] ^ 1]) + original[half + 1 :])
    try:
        assert "pipeline_sha256" in refused([*arguments, "--out", str(copy)], capsys)
    finally:
        weights.write_bytes(original)


def test_a_training_run_is_not_written_over(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text("trainer: {max_steps: 3}\n")
    assert "something else than a predict run" in refused([*arguments, "--out", str(tmp_path)], capsys)
    assert (tmp_path / "config.yaml").read_text() == "trainer: {max_steps: 3}\n"


def test_a_run_that_failed_does_not_keep_the_folder(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Without an image the folder is free for the corrected command."""
    error = refused([*arguments, "--mitigation.timestep", "999", "--out", str(tmp_path)], capsys)
    assert "the 6 timesteps of this schedule run from 831 to 1" in error
    assert main([*arguments, "--limit", "1", "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        (["--model.pipeline", "/nowhere/model"], "no model folder '/nowhere/model'"),
        (["--model.num_inference_steps", "0"], "--model.num_inference_steps: "),
        (["--model.num_inference_steps", "many"], "model.num_inference_steps"),
        (["--prompts", "/nowhere/prompts.txt"], "no prompt file"),
        (["--limit", "0"], "--limit: "),
        (["--batch_size", "0"], "--batch_size: "),
        (["--mitigation.timestep", "2000"], "would never hold guidance back"),
        (["--mitigation.guidance_before", "7.5"], "guidance_before equals guidance_scale"),
        (["--config", "/nowhere/x.yaml"], "/nowhere/x.yaml"),
        (["--trainer.accelerator", "gpu"], "gpu"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    change: list[str],
    message: str,
) -> None:
    for kind in (CUDAAccelerator, MPSAccelerator):  # a machine without a GPU, wherever this runs
        monkeypatch.setattr(kind, "is_available", staticmethod(lambda: False))
    assert message in refused([*arguments, *change, "--out", str(tmp_path / "out")], capsys)


def test_a_broken_model_folder_is_one_clear_error(
    arguments: list[str], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It lacks a part, the part is empty, or its weights are cut."""
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    given = [*arguments, "--model.pipeline", str(model), "--out", str(tmp_path / "out")]
    weights = model / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "not a whole diffusers pipeline" in refused(given, capsys)
    weights.unlink()
    assert "vae has no .safetensors" in refused(given, capsys)
    shutil.rmtree(model / "vae")
    assert "it lacks vae" in refused(given, capsys)
