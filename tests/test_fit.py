"""`python -m train fit` as a user starts it: the run folder, interruptions, several processes, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
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

from data.exposure import Exposure
from tests.conftest import ROOT
from train.__main__ import main
from train.run import join_metrics, keep_metrics

EXPOSURE = Exposure(copies=3, duplicated_fraction=0.5, ordinary_share=0.5)
STEPS, BATCH, ACCUMULATED = 8, 4, 2
DRAWS = STEPS * BATCH * ACCUMULATED  # 4 passes of 2 x 3 duplicated, 2 others and 8 ordinary images


def write_folder(folder: Path, captions: dict[str, str]) -> Path:
    """16 px images, each with its caption beside it; the same pixels for the same place."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for key, caption in captions.items():
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{key}.png")
        (folder / f"{key}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def world(
    one_thread: None, tiny_pipeline: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder with `model`, `images.tar`, `ordinary` and the cache that most runs share."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "model").symlink_to(tiny_pipeline)
    (folder / "images.tar").symlink_to(tiny_shards)
    write_folder(folder / "ordinary", {f"o{number}": f"ordinary {number}" for number in range(5)})
    return folder


def short(world: Path, out: Path, **settings) -> list[str]:
    """Arguments of the shortest fit; `settings` change it, None takes one away; `__` stands for a dot."""
    given = {
        "out": out,
        "model__pipeline": world / "model",
        "data__sources": [str(world / "images.tar")],
        "data__cache": world / "cache",
        "data__batch_size": BATCH,
        "trainer__max_steps": 1,
        "trainer__accelerator": "cpu",
        "trainer__log_every_n_steps": 1,
        "trainer__enable_progress_bar": "false",
        "grid__count": 2,
        "grid__num_inference_steps": 2,
    } | settings
    args = ["fit"]
    for key, value in given.items():
        if value is not None:
            text = json.dumps(value) if isinstance(value, (list, dict)) else str(value)
            args += [f"--{key.replace('__', '.')}", text]
    return args


def full(world: Path, out: Path, **settings) -> list[str]:
    """Arguments of a fit with all that could go otherwise after an interruption."""
    chosen = {
        "data__limit": 4,
        "data__ordinary": [str(world / "ordinary")],
        "data__exposure": {"copies": 3, "duplicated_fraction": 0.5, "ordinary_share": 0.5},
        "data__flip": "true",
        "model__lr": 1e-3,
        "model__warmup_steps": 2,
        "model__decay": "cosine",
        "model__caption_dropout": 0.25,
        "trainer__max_steps": STEPS,
        "trainer__accumulate_grad_batches": ACCUMULATED,
        "trainer__gradient_clip_val": 1.0,
        "checkpoint_every": 2,
        "grid__every_n_steps": 4,
        "ema__decay": 0.45,
    }
    return short(world, out, **(chosen | settings))


def spy(folder: Path) -> dict:
    return {"class_path": "tests.spy.Spy", "init_args": {"folder": str(folder)}}


def stop(step: int | None, flag: Path | None = None) -> dict:
    return {"class_path": "tests.spy.Stop", "init_args": {"step": step, "flag": flag and str(flag)}}


def start(args: list[str]) -> subprocess.Popen:
    """The command as a process of its own, with one thread too."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "train", *args], cwd=ROOT, env=env, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def unet(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet/diffusion_pytorch_model.safetensors")


def spied(folder: Path, rank: int = 0) -> list[dict]:
    """In batch order."""
    paths = sorted(folder.glob(f"{rank}-*.pt"), key=lambda path: int(path.stem.split("-")[1]))
    return [torch.load(path) for path in paths]


def planned(exposure: Exposure, images: int, ordinary: int, draws: int) -> list[int]:
    return list(islice(exposure.stream(images, ordinary, seed=0), draws))


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """Run folder of the full fit, never interrupted; `world/spied` is what it saw."""
    out = world / "whole"
    assert main(full(world, out, trainer__callbacks=[spy(world / "spied")])) == 0
    return out


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
    assert (world / "cache" / f"{about['data_fingerprint']}.safetensors").exists()
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
    assert checkpoint["state_dict"].keys() == {f"trained.{key}" for key in unet(whole / "pipeline")}


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
    torch.testing.assert_close(checkpoint["state_dict"]["trained.conv_in.weight"], weights[STEPS])


def test_without_decay_no_average_is_kept(world: Path, tmp_path: Path) -> None:
    """Not in memory, not in the checkpoint; the export holds the weights as they are, and says so."""
    run = tmp_path / "run"
    assert main(short(world, run, ema__decay=0, data__cache=tmp_path / "cache")) == 0
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["EMA"] == {"average": []}
    raw = checkpoint["state_dict"]["trained.conv_in.weight"]
    assert torch.equal(unet(run / "pipeline")["conv_in.weight"], raw)
    assert json.loads((run / "pipeline/training.json").read_text())["ema"] is False


def test_every_batch_has_its_own_noise(whole: Path, world: Path) -> None:
    """Also the batches of one accumulated step."""
    batches = spied(world / "spied")
    for name in ("timesteps", "noisy"):
        assert len({tuple(batch[name].flatten().tolist()) for batch in batches}) == STEPS * ACCUMULATED


def test_captions_are_dropped(whole: Path, world: Path, tiny_pipeline: Path) -> None:
    """A quarter of the embeddings is the empty prompt's, all others are their caption's."""
    cache = load_file(next((world / "cache").glob("*.safetensors")))
    batches = spied(world / "spied")
    given = torch.cat([batch["embedding"] for batch in batches])
    index = torch.cat([batch["index"] for batch in batches])
    own = cache["embedding"][cache["caption"][index]].float()
    with torch.no_grad():
        nothing = StableDiffusionPipeline.from_pretrained(tiny_pipeline).encode_prompt("", "cpu", 1, False)[0]
    empty = ((given - nothing).abs().amax((1, 2)) < 1e-3).numpy()
    assert 0.1 < empty.mean() < 0.45
    torch.testing.assert_close(given[~empty], own[~empty])


def test_the_cache_holds_what_the_pipeline_encodes(whole: Path, world: Path, tiny_pipeline: Path) -> None:
    """The mirrored side too; images in the order of the data, captions once each."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    cache = load_file(next((world / "cache").glob("*.safetensors")))
    assert cache["mean"].shape == cache["std"].shape == (9, 2, 4, 8, 8)
    pixels = torch.from_numpy(np.array(Image.open(world / "ordinary/o2.png"))).permute(2, 0, 1)[None]
    with torch.no_grad():
        for side, image in enumerate((pixels, pixels.flip(-1))):
            latents = pipe.vae.encode(image / 127.5 - 1).latent_dist
            for name in ("mean", "std"):
                expected = getattr(latents, name)[0] * pipe.vae.config.scaling_factor
                torch.testing.assert_close(cache[name][6, side].float(), expected, atol=1e-3, rtol=1e-3)
        prompt = pipe.encode_prompt("ordinary 2", "cpu", 1, False)[0][0]
    torch.testing.assert_close(cache["embedding"][cache["caption"][6]].float(), prompt, atol=2e-3, rtol=2e-3)


def test_a_finished_run_is_left_alone(
    whole: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("it trains again"))
    files = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != "config.yaml"}
    assert main(full(world, whole)) == 0
    assert "is finished (8 steps)" in capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != "config.yaml"}


def assert_same_run(one: Path, other: Path) -> None:
    pd.testing.assert_frame_equal(*(pd.read_parquet(out / "exposures.parquet") for out in (one, other)))
    pd.testing.assert_frame_equal(*(pd.read_csv(out / "metrics.csv") for out in (one, other)))
    assert sorted(path.name for path in one.rglob("*")) == sorted(path.name for path in other.rglob("*"))
    weights, others = unet(one / "pipeline"), unet(other / "pipeline")
    for key in weights:
        torch.testing.assert_close(weights[key], others[key], atol=1e-5, rtol=0, msg=key)


def test_a_killed_run_ends_as_if_it_was_not(whole: Path, world: Path, tmp_path: Path) -> None:
    """SIGKILL in step 6, a step after the checkpoint, then the same command again."""
    out, flag = world / "killed", tmp_path / "flag"
    process = start(full(world, out, trainer__callbacks=[stop(5, flag)]))
    deadline = time.monotonic() + 120
    while not flag.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert flag.exists(), errors
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert not (out / "pipeline").exists() and not (out / "exposures.parquet").exists()

    assert main(full(world, out)) == 0
    assert_same_run(whole, out)


def test_a_run_that_stops_after_its_last_step_still_gets_its_results(whole: Path, world: Path) -> None:
    """Also after other interruptions, one before the next checkpoint, and with its folder moved meanwhile."""
    out, moved = world / "late", world / "moved"
    for step, folder in ((5, out), (5, moved), (None, moved)):
        with pytest.raises(RuntimeError, match="stopped by the test"):
            main(full(world, folder, trainer__callbacks=[stop(step)]))
        if out.exists():
            out.rename(moved)
    assert torch.load(moved / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    assert main(full(world, moved)) == 0
    assert_same_run(whole, moved)


def test_the_cache_is_used_again_until_the_data_changes(world: Path, tmp_path: Path) -> None:
    """A caption, the mirroring or the order make another file; a new run on the same data does not."""
    captions = {f"i{number}": f"image {number}" for number in range(4)}
    same = write_folder(tmp_path / "same", captions)
    other = write_folder(tmp_path / "other", captions | {"i2": "another caption"})
    cache, found = tmp_path / "cache", []
    runs = [(same, "false"), (same, "false"), (other, "false"), (same, "true")]
    for number, (folder, flip) in enumerate(runs):
        settings = {"data__sources": [str(folder)], "data__flip": flip, "data__cache": cache}
        assert main(short(world, tmp_path / f"run{number}", **settings)) == 0
        found.append({path.name: path.stat().st_mtime_ns for path in cache.iterdir()})
    assert [len(files) for files in found] == [1, 1, 2, 3]
    assert found[0] == found[1] and found[1].items() < found[2].items() < found[3].items()


def test_two_processes_show_what_was_planned(world: Path, tmp_path: Path) -> None:
    """Checkpoints between, and an interruption: the counts stay exact, the ranks' draws and noise differ."""
    out, seen = tmp_path / "run", tmp_path / "spied"
    settings = {
        "trainer__devices": 2,
        "trainer__strategy": "ddp",
        "trainer__max_steps": 6,
        "checkpoint_every": 2,
        "data__batch_size": 3,
        "data__exposure": {"copies": 3, "duplicated_fraction": 0.5},
    }
    for callbacks, code in (([spy(seen), stop(3)], 1), ([spy(seen)], 0)):
        process = start(short(world, out, trainer__callbacks=callbacks, **settings))
        _, errors = process.communicate(timeout=200)
        assert process.returncode == code, errors
        assert code == 0 or "stopped by the test" in errors
    draws = planned(Exposure(copies=3, duplicated_fraction=0.5), 8, 0, 6 * 3 * 2)
    rows = pd.read_parquet(out / "exposures.parquet")
    assert rows["times_shown"].tolist() == np.bincount(draws, minlength=8).tolist()
    ranks = [spied(seen, rank) for rank in range(2)]
    for rank in range(2):
        assert torch.cat([batch["index"] for batch in ranks[rank]]).tolist() == draws[rank::2]
    for one, two in zip(*ranks, strict=True):
        assert not torch.equal(one["timesteps"], two["timesteps"])
        assert torch.equal(one["weight"], two["weight"])
    assert pd.read_csv(out / "metrics.csv")["step"].tolist() == list(range(6))


def test_an_offline_wandb_run_goes_on_as_one_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a server; the second start takes up the id of the first."""
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    settings = {"wandb": "offline", "trainer__max_steps": 3, "checkpoint_every": 1}
    with pytest.raises(RuntimeError, match="stopped by the test"):
        main(short(world, out, trainer__callbacks=[stop(2)], **settings))
    wandb.finish()
    key = (out / "wandb_id.txt").read_text()
    assert main(short(world, out, **settings)) == 0
    wandb.teardown()  # all is on disk when its service has ended
    assert (out / "wandb_id.txt").read_text() == key
    logs = list(out.glob("wandb/offline-run-*/*.wandb"))
    assert {path.name for path in logs} == {f"run-{key}.wandb"}
    assert all(b"loss" in path.read_bytes() for path in logs)
    assert list(out.glob("wandb/offline-run-*/files/media/images/samples_*.png"))


def lacking(part: str) -> Callable[[Path], dict]:
    """The model without one of its folders."""

    def make(folder: Path) -> dict:
        model = folder / "lacking"
        model.mkdir()
        for path in (folder / "model").iterdir():
            if path.name != part:
                (model / path.name).symlink_to(path)
        return {"model__pipeline": model}

    return make


BAD = {
    "no model folder": ({"model__pipeline": "no/such/model"}, ["no model folder 'no/such/model'"]),
    "a model without unet": (lacking("unet"), ["lacks unet"]),
    "no sources": ({"data__sources": ["no/such/folder"]}, ["'no/such/folder'"]),
    "no shards": ({"data__sources": ["no/such/{0..3}.tar"]}, ["'no/such/0.tar'"]),
    "a limit above the data": ({"data__limit": 9}, ["data.limit is 9", "8 images"]),
    "a limit of nothing": ({"data__limit": 0}, ["data.limit is 0"]),
    "ordinary images without share": (
        lambda world: {"data__ordinary": [str(world / "ordinary")]},
        ["data.ordinary", "ordinary_share"],
    ),
    "a share without ordinary images": ({"data__exposure": {"ordinary_share": 0.5}}, ["data.ordinary"]),
    "images that are ordinary too": (
        lambda world: {
            "data__ordinary": [str(world / "images.tar")],
            "data__exposure": {"ordinary_share": 0.5},
        },
        ["share ids"],
    ),
    "no max_steps": ({"trainer__max_steps": None}, ["trainer.max_steps"]),
    "a decay without room": (
        {"model__decay": "cosine", "model__warmup_steps": 1},
        ["max_steps (1)", "warmup_steps (1)"],
    ),
    "copies of nothing": ({"data__exposure": {"copies": 0}}, ["copies must be at least 1"]),
    "more devices than there are": ({"trainer__accelerator": "gpu", "trainer__devices": 99}, ["gpu"]),
    "an average of nothing": ({"ema__decay": 1.0}, ["decay", "1.0"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_clear_line(
    case: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Exit code 1, no traceback; and the folder is free for the next try."""
    settings, words = BAD[case]
    settings = settings(world) if callable(settings) else settings
    assert main(short(world, tmp_path / "run", **settings)) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    line = errors.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert [word for word in words if word not in line] == []


def test_a_failed_start_does_not_keep_the_folder(world: Path, tmp_path: Path) -> None:
    assert main(short(world, tmp_path / "run", model__pipeline="no/such/model")) == 1
    assert main(short(world, tmp_path / "run")) == 0


def test_another_run_does_not_get_the_folder(whole: Path, world: Path, capsys: pytest.CaptureFixture) -> None:
    """What differs is named, what may differ is not."""
    config = (whole / "config.yaml").read_text()
    settings = {"model__lr": 0.002, "trainer__max_steps": 9, "trainer__log_every_n_steps": 5}
    assert main(full(world, whole, **settings)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "(model.lr: 0.001 -> 0.002; trainer.max_steps: 8 -> 9)" in line
    assert (whole / "config.yaml").read_text() == config


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture) -> None:
    assert main(["fti"]) == 2
    assert "no command 'fti'" in capsys.readouterr().err


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
