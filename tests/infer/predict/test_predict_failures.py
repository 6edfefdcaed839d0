"""Images of `python -m infer predict` that fail: black, logged, and left out of scores and tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from data.captioned import load_captioned
from infer.__main__ import main
from infer.compare.score_images import score_folder
from infer.denoising.sampling import embed
from infer.metrics.aggregate import summarize
from infer.metrics.clip_score import ClipScore
from infer.metrics.similarity import pixel_descriptor
from infer.metrics.training_set import TrainingSet
from infer.models.pipeline import load_pipeline
from tests.conftest import CAPTIONS
from tests.infer.predict.runs import captions, command, pixels, rows_of, summary_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def poisoned(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prompt for which the UNet answers NaN from the third of four steps on."""
    embedding = embed(load_pipeline(str(tiny_pipeline)), [CAPTIONS[1]], torch.device("cpu"))[0]
    forward = UNet2DConditionModel.forward

    def failing(self: Any, sample: Tensor, t: Tensor, encoder_hidden_states: Tensor, **options: Any) -> Any:
        (output,) = forward(self, sample, t, encoder_hidden_states, **options)
        bad = torch.isclose(encoder_hidden_states, embedding, atol=1e-4).flatten(1).all(1)
        return (output.masked_fill(bad.view(-1, 1, 1, 1) & (t < 500), torch.nan),)

    monkeypatch.setattr(UNet2DConditionModel, "forward", failing)
    return CAPTIONS[1]


@pytest.mark.parametrize("mitigation", ["none", "stp", "DynamicTransition"])
def test_one_that_fails_leaves_the_others_alone(
    predict: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    warned: Callable[[], list[str]],
    request: pytest.FixtureRequest,
    mitigation: str,
) -> None:
    """Its image is black and its row says where; a warning, the summary and the last line tell."""
    options = ["--prompts", captions(tmp_path), "--mitigation", mitigation, "--batch_size", "3"]
    whole = predict(*options, "--out", str(tmp_path / "whole"))
    assert rows_of(whole)["failed_step"].isna().all() and summary_of(whole)["failed"] == 0
    assert warned() == [] and "FAILED" not in capsys.readouterr().out
    request.getfixturevalue("poisoned")
    out = predict(*options)
    rows, images, before = rows_of(out), pixels(out), pixels(whole)
    assert rows["failed_step"][1] == 2 and rows["failed_step"].isna().tolist() == [True, False, True, True]
    assert set(images) == {f"s{n}-0.png" for n in range(4)}
    assert images["s1-0.png"].shape == (16, 16, 3) and not images["s1-0.png"].any()
    assert all(np.array_equal(images[name], before[name]) for name in images if name != "s1-0.png")
    assert warned() == [
        "s1, sample 0: latents or pixels are not finite after step 2 (t = 251): a black image"
    ]
    assert summary_of(out)["failed"] == 1 and summary_of(out)["images"] == 4
    assert "; 1 FAILED (latents or pixels not finite): black images" in capsys.readouterr().out


def test_failures_are_left_out_of_the_scores(
    predict: Callable[..., Path], poisoned: str, tmp_path: Path, tiny_shards: Path, tiny_clip: Path
) -> None:
    """Not a number in the row, and means and percentiles of the others."""
    out = predict("--prompts", captions(tmp_path))
    training = TrainingSet(load_captioned(str(tiny_shards)), 16, {"similarity": pixel_descriptor})
    rows, _ = score_folder(out, training, ClipScore(str(tiny_clip)))
    assert rows["prompt"][1] == poisoned
    for name in ("similarity_own", "similarity_top", "top_train_id", "clip_score"):
        assert rows[name].isna().tolist() == [False, True, False, False]
    pd.testing.assert_frame_equal(rows, rows_of(out))
    summary_file = summary_of(out)
    summary, others = summarize("none", rows, summary_file), summarize("none", rows.drop(1), summary_file)
    assert summary.pop("prompts") == 4 and others.pop("prompts") == 3
    assert summary.pop("failed") == 1 and others.pop("failed") == 0
    assert summary.pop("images") == 4 and others.pop("images") == 3
    scores = {name: value for name, value in summary.items() if "second" not in name}
    assert scores == pytest.approx({name: others[name] for name in scores}, nan_ok=True)


def test_compare_leaves_failures_out(
    tiny_pipeline: Path, poisoned: str, tmp_path: Path, tiny_shards: Path, tiny_clip: Path
) -> None:
    """Of its table."""
    given = [
        "compare", "--model.pipeline", str(tiny_pipeline), "--prompts", captions(tmp_path), "--training",
        str(tiny_shards), "--clip", str(tiny_clip), "--model.num_inference_steps", "4", "--mitigations",
        "none", "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--out", str(tmp_path / "compare"),
    ]  # fmt: skip
    assert main(given) == 0
    table = pd.read_parquet(tmp_path / "compare/comparison.parquet").iloc[0]
    rows = rows_of(tmp_path / "compare/none").drop(1)
    assert table["images"] == 4 and table["failed"] == 1
    for name in ("similarity_own", "similarity_top", "clip_score"):
        assert rows[name].notna().all() and table[f"{name}_mean"] == pytest.approx(rows[name].mean())


def test_a_run_of_failures_only_is_an_error(
    tiny_pipeline: Path, poisoned: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(command(tiny_pipeline, tmp_path / "run", 4, "--prompt", poisoned)) == 1
    assert "error: every image failed" in capsys.readouterr().err.splitlines()[-1]
