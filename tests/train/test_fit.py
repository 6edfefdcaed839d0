"""`python -m train fit` as a user starts it: the run folder, interruptions, several processes."""

import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from lightning.pytorch import Trainer
from PIL import Image
from safetensors.torch import load_file

from data.regimes.exposure import Exposure
from tests.train import fits
from tests.train.fits import (
    ACCUMULATED,
    DRAWS,
    EXPOSURE,
    STEPS,
    assert_same_run,
    error_line,
    full,
    interrupt,
    planned,
    run_python,
    short,
    spied,
    spy,
    start,
    stop,
    unet,
)
from train.__main__ import main
from train.run_folder.metrics_file import join_metrics, keep_metrics

world, whole = fits.world, fits.whole  # fixtures


def test_the_run_folder_is_complete(whole: Path, world: Path) -> None:
    """And holds nothing else."""
    names = "checkpoints config.yaml exposures.parquet metrics.csv pipeline provenance.json samples"
    assert sorted(path.name for path in whole.iterdir()) == names.split()
    config = yaml.safe_load((whole / "config.yaml").read_text())
    assert (config["model"]["lr"], config["model"]["weight_decay"]) == (1e-3, 1e-2)  # given, and by default
    assert [path.name for path in (whole / "checkpoints").iterdir()] == ["last.ckpt"]
    metrics = pd.read_csv(whole / "metrics.csv")
    assert metrics["step"].tolist() == list(range(STEPS)) and metrics["loss"].between(0, 10).all()
    about = json.loads((whole / "provenance.json").read_text())
    assert (about["images"], about["ordinary_images"], about["devices"]) == (4, 5, 1)
    assert len(about["data_fingerprint"]) == 20
    for step in (4, 8):
        with Image.open(whole / f"samples/step-{step:06d}.png") as sheet:
            assert sheet.width == 2 * 48 and sheet.height > 2 * 48  # two images, their generations, numbers
    assert sorted(path.name for path in (whole / "samples").iterdir())[0] == "similarity.parquet"


def test_the_export_is_a_stock_pipeline_with_another_unet(whole: Path, tiny_pipeline: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(whole / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("red square", num_inference_steps=2).images[0].size == (16, 16)
    before, after = unet(tiny_pipeline), unet(whole / "pipeline")
    assert before.keys() == after.keys()
    assert np.mean([not torch.equal(before[key], after[key]) for key in before]) > 0.9
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        one, two = (load_file(root / f"{part}.safetensors") for root in (tiny_pipeline, whole / "pipeline"))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_checkpoint_holds_the_unet_only(whole: Path) -> None:
    checkpoint = torch.load(whole / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == STEPS
    assert checkpoint["state_dict"].keys() == {f"unet.{key}" for key in unet(whole / "pipeline")}


def test_exposures_are_what_was_planned_and_seen(whole: Path, world: Path) -> None:
    rows = pd.read_parquet(whole / "exposures.parquet")
    assert rows["times_shown"][rows["duplicated"]].tolist() == [12, 12]  # 4 passes x 3 copies
    assert rows["times_shown"][:4][~rows["duplicated"]].tolist() == [4, 4]
    assert sorted(rows["times_shown"][4:]) == [6, 6, 6, 7, 7]  # 4 passes x 8 draws, going round 5 images
    assert rows["id"][4:].tolist() == [f"o{number}" for number in range(5)]
    seen = torch.cat([batch["index"] for batch in spied(world / "spied")])
    assert seen.tolist() == planned(EXPOSURE, 4, 5, DRAWS)


def test_the_export_is_the_moving_average(whole: Path, world: Path, tiny_pipeline: Path) -> None:
    """The recursion by hand: average <- k average + (1 - k) weights, once a step."""
    average = unet(tiny_pipeline)["conv_in.weight"]
    weights = {batch["step"]: batch["weight"] for batch in spied(world / "spied")}
    assert sorted(weights) == list(range(STEPS + 1))  # 0: the first batch of an accumulated step
    for step in range(1, STEPS + 1):
        keep = min(0.45, (1 + step) / (10 + step))
        average = keep * average + (1 - keep) * weights[step]
    exported = unet(whole / "pipeline")["conv_in.weight"]
    torch.testing.assert_close(exported, average, atol=2e-7, rtol=1e-5)
    assert (exported - weights[STEPS]).abs().max() > 1e-5
    checkpoint = torch.load(whole / "checkpoints/last.ckpt", weights_only=True)
    torch.testing.assert_close(checkpoint["state_dict"]["unet.conv_in.weight"], weights[STEPS])


def test_without_decay_no_average_is_kept(world: Path, tmp_path: Path) -> None:
    """Not in memory, not in the checkpoint; the export holds the weights as they are, and says so."""
    run = tmp_path / "run"
    assert main(short(world, run, ema__decay=0, data__cache=tmp_path / "cache")) == 0
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["EMA"] == {"average": []}
    raw = checkpoint["state_dict"]["unet.conv_in.weight"]
    assert torch.equal(unet(run / "pipeline")["conv_in.weight"], raw)
    assert json.loads((run / "pipeline/training.json").read_text())["ema"] is False


def test_every_batch_has_its_own_noise(whole: Path, world: Path) -> None:
    """Also the batches of one accumulated step."""
    batches = spied(world / "spied")
    for name in ("timesteps", "noisy"):
        assert len({tuple(batch[name].flatten().tolist()) for batch in batches}) == STEPS * ACCUMULATED


def test_a_finished_run_is_left_alone(
    whole: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("it trains again"))
    files = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != "config.yaml"}
    assert main(full(world, whole, wandb="offline")) == 0
    assert "is finished (8 steps)" in capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != "config.yaml"}


def test_a_killed_run_ends_as_if_it_was_not(whole: Path, world: Path, tmp_path: Path) -> None:
    """SIGKILL in step 6, a step after the checkpoint, then the same command again."""
    out, flag = world / "killed", tmp_path / "flag"
    process = start(full(world, out, trainer__callbacks=[stop(5, flag)]))
    fits.wait_for(flag, process)
    process.kill()
    assert process.exit_codes() == [-signal.SIGKILL]
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert not (out / "pipeline").exists() and not (out / "exposures.parquet").exists()

    assert main(full(world, out)) == 0
    assert_same_run(whole, out)


def test_a_run_that_stops_after_its_last_step_still_gets_its_results(whole: Path, world: Path) -> None:
    """Also after other interruptions, one before the next checkpoint, and with its folder moved meanwhile."""
    out, moved = world / "late", world / "moved"
    for step, folder in ((5, out), (5, moved), (None, moved)):
        interrupt(full(world, folder), step)
        if out.exists():
            out.rename(moved)
    assert torch.load(moved / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    assert main(full(world, moved)) == 0
    assert_same_run(whole, moved)


def test_two_processes_show_what_was_planned(world: Path, tmp_path: Path) -> None:
    """Checkpoints between: the counts are exact, the ranks' draws and noise differ.

    One process with a batch twice as large sees the same, and has the same losses. `test_regimes` and
    `test_streamed` have an interruption.
    """
    out, seen = tmp_path / "run", tmp_path / "spied"
    settings = {
        "trainer__devices": 2,
        "trainer__strategy": "ddp_fork",
        "trainer__max_steps": 6,
        "checkpoint_every": 2,
        "data__batch_size": 3,
        "data__exposure": {"copies": 3, "duplicated_fraction": 0.5},
    }
    run_python(short(world, out, trainer__callbacks=[spy(seen)], **settings))
    draws = planned(Exposure(copies=3, duplicated_fraction=0.5), 8, 0, 6 * 3 * 2)
    rows = pd.read_parquet(out / "exposures.parquet")
    assert rows["times_shown"].tolist() == np.bincount(draws, minlength=8).tolist()
    ranks = [spied(seen, rank) for rank in range(2)]
    for rank in range(2):
        assert torch.cat([batch["index"] for batch in ranks[rank]]).tolist() == draws[rank::2]
    for one, two in zip(*ranks, strict=True):
        assert not torch.equal(one["timesteps"], two["timesteps"])
        assert torch.equal(one["weight"], two["weight"])
    metrics = pd.read_csv(out / "metrics.csv")
    assert metrics["step"].tolist() == list(range(6))

    one, alone = tmp_path / "one", tmp_path / "alone"
    settings |= {"trainer__devices": 1, "trainer__strategy": "auto", "data__batch_size": 6}
    assert main(short(world, one, trainer__callbacks=[spy(alone)], **settings)) == 0
    assert pd.read_parquet(one / "exposures.parquet").equals(rows)
    losses = pd.read_csv(one / "metrics.csv")["loss"]
    np.testing.assert_allclose(losses, metrics["loss"], rtol=0, atol=1e-5)
    for both, two in zip(spied(alone), zip(*ranks, strict=True), strict=True):
        for rank in range(2):
            assert torch.equal(both["timesteps"][rank::2], two[rank]["timesteps"])
            assert torch.equal(both["noisy"][rank::2], two[rank]["noisy"])


def test_an_offline_wandb_run_continues_as_one_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a server; the second start takes up the id of the first."""
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    settings = {"wandb": "offline", "trainer__max_steps": 3, "checkpoint_every": 1}
    interrupt(short(world, out, **settings), 2)
    wandb.finish()
    key = (out / "wandb_id.txt").read_text()
    assert main(short(world, out, **settings)) == 0
    wandb.teardown()  # all is on disk when its service has ended
    assert (out / "wandb_id.txt").read_text() == key
    logs = list(out.glob("wandb/offline-run-*/*.wandb"))
    assert {path.name for path in logs} == {f"run-{key}.wandb"}
    assert all(b"loss" in path.read_bytes() for path in logs)
    assert list(out.glob("wandb/offline-run-*/files/media/images/samples_*.png"))


def test_metrics_of_several_starts_become_one_table(tmp_path: Path) -> None:
    """A step that was logged twice counts as the later start saw it; its other columns are kept."""
    (tmp_path / "metrics.csv").write_text("epoch,loss,step,val\n0,1.0,0,\n0,2.0,1,\n0,,1,5.0\n0,3.0,2,\n")
    keep_metrics(tmp_path)
    assert not (tmp_path / "metrics.csv").exists()
    (tmp_path / "metrics.csv").write_text("epoch,loss,step,val\n0,3.5,2,\n")
    keep_metrics(tmp_path)
    (tmp_path / "metrics.csv").write_text("epoch,loss,step,val\n0,3.75,2,\n0,4.0,3,\n0,,3,6.0\n")
    join_metrics(tmp_path)
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert rows["step"].tolist() == [0, 1, 2, 3] and rows["loss"].tolist() == [1, 2, 3.75, 4]
    assert rows["val"].dropna().tolist() == [5, 6] and len(list(tmp_path.iterdir())) == 1


def test_clipped_gradients_in_mixed_precision(world: Path, tmp_path: Path) -> None:
    """As every published config has it."""
    settings = {
        "trainer__precision": "bf16-mixed",
        "trainer__gradient_clip_val": 1.0,
        "trainer__max_steps": 3,
    }
    for name, given in (("half", settings), ("full", settings | {"trainer__precision": "32-true"})):
        assert main(short(world, tmp_path / name, **given)) == 0
    half, full = (pd.read_csv(tmp_path / name / "metrics.csv")["loss"] for name in ("half", "full"))
    np.testing.assert_allclose(half, full, rtol=0.02)
    assert not np.array_equal(half, full)


def test_another_accumulation_is_another_run(
    whole: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Lightning counts batches: it would continue within a step."""
    out = tmp_path / "run"
    interrupt(full(world, out), 3)
    line = error_line(full(world, out, trainer__accumulate_grad_batches=1), capsys)
    assert "accumulate_grad_batches was 2 and is 1" in line
