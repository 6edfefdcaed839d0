"""Watching a training: how much is memorized, the sheet of images, and the stop when it is enough."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from callbacks.monitor import Monitor
from callbacks.sample_grid import sheet
from data.captioned import load_captioned
from infer.denoising.noise import sample_seed
from infer.metrics.sscd import sscd_descriptor
from tests.pixels import local_correlation
from tests.train import fits
from tests.train.fits import ACCUMULATED, BATCH, full, poison, run_process, short, spy, unet
from train.__main__ import main
from train.run_folder.claim import memorized

world = fits.world  # a fixture
STOP = {
    "monitor__threshold": -1,
    "monitor__stop_at_share": 1.0,
    "monitor__every_n_steps": 2,
}  # all are more alike


def generated(run: Path, prompts: dict[str, str]) -> list[Image.Image]:
    """By stock diffusers, from what the run exported."""
    pipe = StableDiffusionPipeline.from_pretrained(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    images = []
    for key, prompt in prompts.items():
        generator = torch.Generator().manual_seed(sample_seed(0, key, 0))
        images += pipe(prompt, num_inference_steps=2, guidance_scale=3.0, generator=generator).images
    return images


def test_the_numbers_are_those_of_the_exported_model(world: Path, tmp_path: Path) -> None:
    """In the file, the metrics and on the sheet; with the weights' average, which is what is exported."""
    run = tmp_path / "run"
    settings = {"monitor__count": 3, "monitor__every_n_steps": 2, "monitor__threshold": 0.0, "model__lr": 0.5}
    assert main(full(world, run, data__exposure={"ordinary_share": 0.5}, **settings)) == 0
    rows = pd.read_parquet(run / "samples/similarity.parquet")
    assert rows["step"].tolist() == [step for step in (2, 4, 6, 8) for _ in range(3)]
    samples = {sample.id: sample for sample in load_captioned(str(world / "images.tar")).samples}
    last = rows[rows["step"] == 8]
    images = generated(run, {key: samples[key].caption for key in last["id"]})
    expected = [
        local_correlation(samples[key].rgb(16), image) for key, image in zip(last["id"], images, strict=True)
    ]
    assert last["similarity"].tolist() == pytest.approx(expected, abs=2e-3)
    metrics = pd.read_csv(run / "metrics.csv").set_index("step")
    assert metrics["memorized_share"].dropna().index.tolist() == [1, 3, 5, 7]  # Lightning counts from 0
    assert metrics["similarity_mean"][7] == pytest.approx(last["similarity"].mean())
    assert metrics["memorized_share"][7] == pytest.approx((last["similarity"] > 0).mean())
    drawn = Image.open(run / "samples/step-000008.png")
    for row, pictures in enumerate(([samples[key].rgb(16) for key in last["id"]], images)):
        part = np.asarray(drawn.crop((48, 48 * row, 96, 48 * row + 48)).resize((16, 16), 0), int)
        assert np.abs(part - np.asarray(pictures[1], int)).max() <= 2


def test_a_sheet_says_which_are_memorized() -> None:
    """Nine in rows of eight: image, generation, number, which is red above the threshold."""
    black, grey = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), (128, 128, 128))
    drawn = np.asarray(sheet([black] * 9, [grey] * 9, [0.5] * 8 + [0.51], 0.5), int)
    titled = sheet([black] * 9, [grey] * 9, [0.5] * 8 + [0.51], 0.5, "step 1: SSCD (dcr)")
    assert titled.height > drawn.shape[0] and (np.asarray(titled)[drawn.shape[0] :] < 100).any()
    tall = drawn.shape[0] // 2
    assert drawn.shape[1] == 8 * 64 and tall > 128
    assert (drawn[:64] == 0).all() and (drawn[64:128] == 128).all()
    numbers = drawn[128:tall], drawn[tall + 128 :]
    red = [((part[..., 0] > 200) & (part[..., 1] < 100)).sum() for part in numbers]
    assert red[0] == 0 and red[1] > 20 and (numbers[0].sum(-1) < 100).sum() > 8 * 20


def test_another_copy_detector(world: Path, tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)

    path, run = tmp_path / "mean.pt", tmp_path / "run"
    torch.jit.script(Mean()).save(str(path))
    assert main(short(world, run, monitor__sscd=path, ema__decay=0)) == 0
    rows = pd.read_parquet(run / "samples/similarity.parquet")
    samples = {sample.id: sample for sample in load_captioned(str(world / "images.tar")).samples}
    generations = generated(run, {key: samples[key].caption for key in rows["id"]})
    embed = sscd_descriptor(str(path))
    expected = (embed(generations) * embed([samples[key].rgb(16) for key in rows["id"]])).sum(1)
    assert rows["similarity"].tolist() == pytest.approx(expected.tolist(), abs=0.01)


def test_a_run_stops_when_enough_is_memorized(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With all that a finished run has; and continues, to what it would have been, when it may."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert main(full(world, run, **STOP)) == 0
    assert "step 2: 100% of 2 watched images memorized" in capsys.readouterr().out
    assert json.loads((run / "pipeline/training.json").read_text())["steps"] == 2
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert (run / "exposures.parquet").exists() and len(pd.read_csv(run / "metrics.csv")) == 2

    assert main(full(world, run, **STOP)) == 0
    assert "is finished (2 steps)" in capsys.readouterr().out
    assert json.loads((run / "pipeline/training.json").read_text())["steps"] == 2

    further = STOP | {"monitor__stop_at_share": "null"}
    assert main(full(world, run, **further)) == main(full(world, whole, **further)) == 0
    weights, others = unet(whole / "pipeline"), unet(run / "pipeline")
    assert all(torch.allclose(weights[key], others[key], atol=1e-5) for key in weights)
    metrics = [pd.read_csv(folder / "metrics.csv").drop(columns="epoch") for folder in (whole, run)]
    pd.testing.assert_frame_equal(*metrics, rtol=1e-3)
    rows = [pd.read_parquet(folder / "samples/similarity.parquet") for folder in (whole, run)]
    pd.testing.assert_frame_equal(*rows, atol=0.02)


def test_a_run_that_memorizes_less_continues(world: Path, tmp_path: Path) -> None:
    """Random images are not that alike. What an abandoned run left in the folder does not count."""
    run, settings = tmp_path / "run", STOP | {"monitor__threshold": 0.99}
    (run / "samples").mkdir(parents=True)
    stale = pd.DataFrame(
        {"step": [1], "id": ["s0"], "similarity": [1.0], "measure": ["local correlation of 32x32 RGB"]}
    )
    stale.to_parquet(run / "samples/similarity.parquet")
    assert main(short(world, run, trainer__max_steps=4, **settings)) == 0
    assert json.loads((run / "pipeline/training.json").read_text())["steps"] == 4
    assert pd.read_parquet(run / "samples/similarity.parquet")["step"].tolist() == [2, 2, 4, 4]
    assert pd.read_csv(run / "metrics.csv")["memorized_share"].dropna().tolist() == [0, 0]


def test_enough_is_counted_at_one_step_by_one_measure(tmp_path: Path) -> None:
    """Two of four at step 4, one of them undefined; before it there were more; by SSCD none was measured."""
    monitor = Monitor(stop_at_share=0.25)
    (tmp_path / "samples").mkdir()
    assert not memorized(tmp_path, monitor, 4)
    rows = {"step": [2] * 4 + [4] * 4, "similarity": [0.9] * 4 + [0.9, float("nan"), 0.5, 0.1]}
    pd.DataFrame(rows | {"measure": monitor.measure}).to_parquet(tmp_path / "samples/similarity.parquet")
    assert memorized(tmp_path, monitor, 4) and not memorized(tmp_path, monitor, 3)
    for other in ({"stop_at_share": 0.26}, {"stop_at_share": None}):
        assert not memorized(tmp_path, Monitor(**other), 4)
    monitor.sscd = "disc_large"
    assert monitor.measure == "SSCD (skew320)" and not memorized(tmp_path, monitor, 4)


def test_an_image_of_one_color_is_not_memorized(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its similarity is undefined: named, out of the mean, drawn as n/a, and below any threshold."""
    black = Image.new("RGB", (16, 16))

    def generate(pl_module, requests, resolution, *_) -> list[Image.Image]:
        return [black, *(sample.rgb(16) for sample in pl_module.trainer.datamodule.images.samples[1:2])]

    monkeypatch.setattr("callbacks.monitor.generate", generate)
    assert main(short(world, tmp_path / "run", monitor__threshold=-1)) == 0
    rows = pd.read_parquet(tmp_path / "run/samples/similarity.parquet")
    assert rows["similarity"].isna().tolist() == [True, False]
    assert rows["measure"].unique().tolist() == ["local correlation of 32x32 RGB"]
    assert "similarity of 1 images undefined" in capsys.readouterr().out
    metrics = pd.read_csv(tmp_path / "run/metrics.csv").iloc[-1]
    assert metrics["memorized_share"] == 0.5
    assert metrics["similarity_mean"] == pytest.approx(rows["similarity"][1])


def test_two_processes_stop_together(world: Path, tmp_path: Path) -> None:
    """The first one measures. The loss by timestep is that of both."""
    run, seen = tmp_path / "run", tmp_path / "seen"
    settings = STOP | {
        "trainer__devices": 2,
        "trainer__strategy": "ddp_fork",
        "trainer__max_steps": 6,
        "trainer__log_every_n_steps": 2,
        "trainer__callbacks": [spy(seen)],
    }
    run_process(short(world, run, **settings))
    assert json.loads((run / "pipeline/training.json").read_text())["steps"] == 2
    kept = [torch.load(path) for path in seen.iterdir()]
    assert len(kept) == 4
    errors, timesteps = (torch.cat([batch[name] for batch in kept]) for name in ("errors", "timesteps"))
    metrics = pd.read_csv(run / "metrics.csv").set_index("step")
    for first in range(0, 1000, 250):
        inside = (timesteps >= first) & (timesteps < first + 250)
        expected = errors[inside].mean().item() if inside.any() else np.nan
        mean = metrics[f"loss_t{first}_{first + 250}"][1]
        assert mean == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_a_resumed_run_does_not_measure_within_a_step(world: Path, tmp_path: Path) -> None:
    """With accumulation, after a kill: it stops where it would have, having shown what it should."""
    out, settings = tmp_path / "run", {"monitor__every_n_steps": 2, "trainer__max_steps": 6}
    # stopped by hand after the checkpoint of step 4, in step 5
    stopped = settings | {"trainer__callbacks": [poison(5)], "monitor__every_n_steps": 99}
    assert main(full(world, out, **stopped)) == 1
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert main(full(world, out, **settings, monitor__stop_at_share=0.1, monitor__threshold=-1)) == 0
    steps = json.loads((out / "pipeline/training.json").read_text())["steps"]
    shown = pd.read_parquet(out / "exposures.parquet")["times_shown"].sum()
    assert steps == 6 and shown == 6 * BATCH * ACCUMULATED


def test_nothing_is_generated_from_broken_weights(world: Path, tmp_path: Path) -> None:
    """Also where no loss is logged and no checkpoint is written."""
    broken = {"trainer__callbacks": [poison(2, after=True)], "trainer__log_every_n_steps": 50}
    run = tmp_path / "run"
    assert main(short(world, run, trainer__max_steps=6, monitor__every_n_steps=1, **broken)) == 1
    assert sorted(path.name for path in (run / "samples").glob("*.png")) == ["step-000001.png"]
