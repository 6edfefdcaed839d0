"""What goes wrong outside of a training: data and files that change, break or are missing, and full disks."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import LMSDiscreteScheduler, StableDiffusionPipeline
from PIL import Image

from tests.train import fits
from tests.train.fits import error_line, interrupt, run_process, short, start, stop, unet, write_folder
from train.__main__ import main
from train.run_folder.metrics_file import MetricsLogger, join_metrics, keep_metrics

world = fits.world  # a fixture
CAPTIONS = {f"i{number}": f"image {number}" for number in range(4)}


def replace_image(folder: Path, model: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(folder / "i1.png")


def rename_image(folder: Path, model: Path) -> None:
    for suffix in ("png", "txt"):
        (folder / f"i1.{suffix}").rename(folder / f"j1.{suffix}")


def edit_caption(folder: Path, model: Path) -> None:
    (folder / "i2.txt").write_text("another caption")


def retrain(folder: Path, model: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    with torch.no_grad():
        pipe.vae.decoder.mid_block.resnets[0].conv1.weight.mul_(1.01)
    pipe.save_pretrained(model)


def predict_noise(folder: Path, model: Path) -> None:
    path = model / "scheduler/scheduler_config.json"
    path.write_text(path.read_text().replace("v_prediction", "epsilon"))


def read_less(folder: Path, model: Path) -> None:
    path = model / "tokenizer/tokenizer_config.json"
    path.write_text(path.read_text().replace('"model_max_length": 8', '"model_max_length": 7'))


@pytest.mark.parametrize(
    "change, words",
    [
        (replace_image, "1 with another image ('i1')"),
        (rename_image, "1 gone ('i1'); 1 new ('j1')"),
        (edit_caption, "1 with other captions ('i2')"),
        (retrain, "the vae of"),
        (predict_noise, "the scheduler of"),
        (read_less, "the tokenizer of"),
    ],
)
def test_a_run_does_not_continue_on_other_data_or_another_model(
    change: Callable, words: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The same command, after the checkpoint: what changed is named, and nothing is encoded again."""
    images = write_folder(tmp_path / "images", CAPTIONS)
    model = shutil.copytree((world / "model").resolve(), tmp_path / "model")
    settings = {"model__pipeline": model, "data__sources": [str(images)], "data__cache": tmp_path / "cache"}
    args = short(world, tmp_path / "run", **settings, trainer__max_steps=4, checkpoint_every=1)
    interrupt(args, 2)
    caches = len(list((tmp_path / "cache").iterdir()))
    change(images, model)
    line = error_line(args, capsys)
    assert words in line and "changed since the checkpoint" in line
    if change in (replace_image, rename_image, edit_caption):
        assert len(list((tmp_path / "cache").iterdir())) == caches


@pytest.mark.parametrize("cache", ["cache", None])
def test_an_image_that_cannot_be_decoded_is_left_out_and_named(
    cache: str | None, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    """Whatever its decoder raises; the fit continues, the image is counted as skipped, and not watched."""
    from data.captioned import Sample

    images, decode = write_folder(tmp_path / "images", CAPTIONS), Sample.rgb

    def rgb(sample: Sample, resolution: int | None = None) -> Image.Image:
        if sample.id == "i0":
            raise SyntaxError("broken PNG file")
        return decode(sample, resolution)

    monkeypatch.setattr(Sample, "rgb", rgb)
    monkeypatch.setattr("train.dataset.draws.SKIPPED", set())
    folder = tmp_path / cache if cache else "null"
    settings = {"data__sources": [str(images)], "data__cache": folder, "trainer__max_steps": 2}
    assert main(short(world, tmp_path / "run", **settings, monitor__count=4)) == 0
    rows = pd.read_parquet(tmp_path / "run/exposures.parquet").set_index("id")
    assert rows["times_skipped"].tolist() == [2, 0, 0, 0] and rows["times_shown"].tolist() == [2] * 4
    assert pd.read_csv(tmp_path / "run/metrics.csv")["loss"].between(0, 10).all()
    assert any(
        "'i0'" in record.getMessage() and "broken PNG" in record.getMessage() for record in caplog.records
    )
    assert "i0" not in set(pd.read_parquet(tmp_path / "run/samples/similarity.parquet")["id"])


def test_a_broken_checkpoint_is_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """In one line, which does not recommend to load it in another way."""
    path = tmp_path / "run/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no checkpoint")
    line = error_line(short(world, tmp_path / "run"), capsys)
    assert str(path) in line and "weights_only" not in line


@pytest.mark.parametrize(
    "missing", ["pipeline", "pipeline/vae", "pipeline/unet/*.safetensors", "exposures.parquet"]
)
def test_missing_results_of_a_finished_run_are_written_again(
    missing: str, world: Path, tmp_path: Path
) -> None:
    """From the last checkpoint, the same as before, with the average."""
    run = tmp_path / "run"
    args = short(world, run, model__lr=1e-2, trainer__max_steps=3, ema__decay=0.5)
    assert main(args) == 0
    weights, rows = unet(run / "pipeline"), pd.read_parquet(run / "exposures.parquet")
    metrics = (run / "metrics.csv").read_text()
    for path in run.glob(missing):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(args) == 0
    again = unet(run / "pipeline")
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    pd.testing.assert_frame_equal(pd.read_parquet(run / "exposures.parquet"), rows)
    assert (run / "metrics.csv").read_text() == metrics


def test_a_finished_run_is_not_trained_again_unasked(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Where results are missing or cut, and there is no checkpoint to make them from."""
    run = tmp_path / "run"
    assert main(short(world, run)) == 0
    (run / "checkpoints/last.ckpt").unlink()
    assert main(short(world, run)) == 0  # finished, and whole
    rows = (run / "exposures.parquet").read_bytes()
    (run / "exposures.parquet").write_bytes(rows[: len(rows) // 2])
    assert "not all results, and no checkpoints/last.ckpt" in error_line(short(world, run), capsys)
    (run / "exposures.parquet").write_bytes(rows)
    (run / "pipeline/training.json").write_text("{")
    assert "not all results, and no checkpoints/last.ckpt" in error_line(short(world, run), capsys)


def test_no_row_of_the_metrics_is_lost_by_a_kill(world: Path, tmp_path: Path) -> None:
    """Right after a checkpoint was renamed, before Lightning logs its step: 9 steps, one every 3."""
    out, flag = tmp_path / "run", tmp_path / "flag"
    args = short(world, out, trainer__max_steps=9, checkpoint_every=3)
    kill = {"class_path": "tests.train.spy.KillAfterCheckpoint", "init_args": {"flag": str(flag)}}
    run_process([*args, "--trainer.callbacks", json.dumps([kill])], -9)
    assert flag.exists()
    assert main(args) == 0
    metrics = pd.read_csv(out / "metrics.csv")
    assert metrics["step"].tolist() == list(range(9)) and metrics["loss"].notna().all()
    assert not [path for path in out.rglob("*") if path.name.startswith(".") or path.suffix == ".part"]


def test_an_empty_file_of_metrics_stops_no_restart(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("")
    keep_metrics(tmp_path)
    (tmp_path / "metrics.csv").write_text("loss,step\n1.0,0\n")
    join_metrics(tmp_path)
    assert pd.read_csv(tmp_path / "metrics.csv")["step"].tolist() == [0]


def test_a_full_disk_loses_no_row_of_the_metrics(tmp_path: Path) -> None:
    """Where a column more is written, and where a row is cut."""
    logger = MetricsLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    logger.log_metrics({"loss": 2.0, "memorized_share": 0.5}, 12)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("csv.DictWriter.writeheader", lambda *_: full_disk())
        with pytest.raises(OSError, match="No space left"):
            logger.save()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert pd.read_csv(tmp_path / "metrics.csv").to_dict("list") == {"loss": [1.0], "step": [0]}
    logger.save()
    whole = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").write_bytes(whole.rstrip()[:-1])  # step 12 is cut to 1
    keep_metrics(tmp_path)
    assert pd.read_csv(tmp_path / "metrics-before.csv")["step"].tolist() == [0]


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_two_fits_in_one_folder(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The second one is refused while the first one trains, and takes over when that was killed."""
    out, flag = tmp_path / "run", tmp_path / "flag"
    args = short(world, out, trainer__max_steps=2, checkpoint_every=1)
    process = start([*args, "--trainer.callbacks", json.dumps([stop(2, flag)])])
    fits.wait_for(flag, process)
    assert f"{out} is being filled by process" in error_line(args, capsys)
    process.kill()
    process.exit_codes()
    assert main(args) == 0 and not (out / ".lock").exists()


def test_a_full_disk_is_one_line_with_the_folder(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full_disk(*_) -> None:
        raise RuntimeError(
            "[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file data/3"
        )

    monkeypatch.setattr("train.run_folder.checkpoint_file.torch.save", full_disk)
    line = error_line(short(world, tmp_path / "run"), capsys)
    assert "no space left" in line and str(tmp_path / "run") in line
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def long_tokenizer(pipe: StableDiffusionPipeline) -> None:
    pipe.tokenizer.model_max_length = 77


def unknown_sampler(pipe: StableDiffusionPipeline) -> None:
    pipe.scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config)


@pytest.mark.parametrize(
    "change, words", [(long_tokenizer, "takes 8: set model_max_length"), (unknown_sampler, "LMSDiscrete")]
)
@pytest.mark.parametrize("command", ["plan", "fit"])
def test_a_model_that_cannot_be_sampled_is_refused_before_the_training(
    command: str, change: Callable, words: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(world / "model")
    change(pipe)
    pipe.save_pretrained(tmp_path / "model")
    settings = {"model__pipeline": tmp_path / "model", "data__cache": tmp_path / "cache"}
    args = [command, *short(world, tmp_path / "run", **settings)[1:]]
    assert words in error_line(args, capsys)
    assert not (tmp_path / "cache").exists()


def test_fit_takes_the_resolutions_of_predict(world: Path, tmp_path: Path, capsys) -> None:
    """18 pixels are 9 latents, which the UNet halves to 5 and doubles to 9: it trains, and samples."""
    settings = {"data__resolution": 18, "data__cache": tmp_path / "cache", "model__lr": 1e-2}
    run = tmp_path / "run"
    assert main(short(world, run, **settings, trainer__max_steps=3)) == 0
    assert pd.read_csv(run / "metrics.csv")["loss"].between(0, 10).all()
    before, after = unet(world / "model"), unet(run / "pipeline")
    assert np.mean([not torch.equal(before[key], after[key]) for key in before]) > 0.9
    assert Image.open(run / "samples/step-000003.png").width == 2 * 54  # enlarged three times
    for command in ("plan", "fit"):
        args = [command, *short(world, tmp_path / "other", data__resolution=17)[1:]]
        assert "a multiple of 2" in error_line(args, capsys)


def test_another_process_hears_of_any_error() -> None:
    """Of the first process alone, such as a cache that cannot be written: the others exit."""
    from types import SimpleNamespace

    from train.dataset.cache import on_first_rank

    def fail() -> None:
        raise OSError("Read-only file system")

    for zero, kind in ((True, OSError), (False, SystemExit)):
        answers = []
        strategy = SimpleNamespace(
            is_global_zero=zero,
            broadcast=lambda value, answers=answers: answers.append(value) or (None, True),
        )
        with pytest.raises(kind):
            on_first_rank(strategy, fail)
        assert answers == [(None, zero)]
