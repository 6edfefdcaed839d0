"""`--trainer.strategy sharded`: two processes that each hold half of the UNet train what DDP's train."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule

from data.regimes.exposure import Exposure
from tests.train import fits
from tests.train.fits import callback, planned, poison, run_process, short, start, stop, unet
from train.finetune import Finetune
from train.sharded import check

world = fits.world  # a fixture
STEPS = 3
EXPOSURE = Exposure(copies=3, duplicated_fraction=0.5)
SETTINGS = {
    "trainer__devices": 2,
    "trainer__max_steps": STEPS,
    "trainer__gradient_clip_val": 0.5,
    "trainer__accumulate_grad_batches": 2,
    "model__lr": 1e-3,
    "model__warmup_steps": 2,
    "model__decay": "cosine",
    "model__caption_dropout": 0.25,
    "data__batch_size": 3,
    "data__exposure": {"copies": 3, "duplicated_fraction": 0.5},
    "checkpoint_every": 2,
    "monitor__every_n_steps": 2,
    "ema__decay": 0.45,
}


@pytest.fixture(scope="module")
def ddp(world: Path) -> Path:
    run_process(short(world, world / "ddp", trainer__strategy="ddp", **SETTINGS), ranks=2)
    return world / "ddp"


@pytest.fixture(scope="module")
def sharded(world: Path) -> Path:
    """Killed in step 3, both processes, a step after the checkpoint; then the same command again."""
    out, flag = world / "sharded", world / "flag"
    settings = SETTINGS | {"trainer__strategy": "sharded"}
    held = callback("Held", folder=str(world / "held"))
    command = start(short(world, out, trainer__callbacks=[stop(3, flag)], **settings), ranks=2)
    fits.wait_for(flag, command)
    command.kill()
    assert command.exit_codes() == [-signal.SIGKILL] * 2
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    run_process(short(world, out, trainer__callbacks=[held], **settings), ranks=2)
    return out


def test_each_rank_holds_half(sharded: Path, ddp: Path, world: Path) -> None:
    """Of the weights, gradients, both moments of AdamW, and averages; what is odd goes to the first rank."""
    whole = 4 * sum(weight.numel() for weight in unet(ddp / "pipeline").values())
    ranks = [json.loads((world / "held" / f"{rank}.json").read_text()) for rank in range(2)]
    for name, times in {"weights": 1, "gradients": 1, "moments": 2, "averages": 1}.items():
        parts = [rank[name] for rank in ranks]
        assert sum(parts) == times * whole, name
        assert all(0.45 < part / (times * whole) < 0.55 for part in parts), name


def test_an_interrupted_sharded_run_ends_where_ddp_does(sharded: Path, ddp: Path, world: Path) -> None:
    """The averages that are exported, and the weights, averages and moments of the last checkpoint."""
    one, two = (torch.load(out / "checkpoints/last.ckpt", weights_only=True) for out in (ddp, sharded))
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(unet(sharded / "pipeline"), unet(ddp / "pipeline"), **close)
    torch.testing.assert_close(two["state_dict"], one["state_dict"], **close)
    torch.testing.assert_close(two["callbacks"]["EMA"], one["callbacks"]["EMA"], **close)
    torch.testing.assert_close(
        two["optimizer_states"][0]["state"], one["optimizer_states"][0]["state"], **close
    )
    assert two["lr_schedulers"] == one["lr_schedulers"]
    before, after = unet(world / "model"), unet(sharded / "pipeline")
    assert max((after[key] - before[key]).abs().max() for key in before) > 1e-3


def test_a_sharded_run_leaves_the_same_folder(sharded: Path, ddp: Path) -> None:
    """Exact counts, the same losses, the monitor's sheets; the pipeline names diffusers' own classes."""
    files = [sorted(str(path.relative_to(out)) for path in out.rglob("*")) for out in (sharded, ddp)]
    assert files[0] == files[1]
    assert {"samples/step-000002.png", f"samples/step-{STEPS:06d}.png"} <= set(files[0])
    rows = pd.read_parquet(sharded / "exposures.parquet")
    draws = planned(EXPOSURE, 8, 0, STEPS * 2 * 3 * 2)
    assert rows["times_shown"].tolist() == np.bincount(draws, minlength=8).tolist()
    for name, read in {"metrics.csv": pd.read_csv, "samples/similarity.parquet": pd.read_parquet}.items():
        pd.testing.assert_frame_equal(*(read(out / name) for out in (sharded, ddp)), atol=1e-4)
    for name in ("model_index.json", "unet/config.json", "training.json"):
        texts = [json.loads((out / "pipeline" / name).read_text()) for out in (sharded, ddp)]
        texts = [{key: value for key, value in text.items() if key != "_name_or_path"} for text in texts]
        assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_share_that_breaks_is_seen(world: Path, tmp_path: Path) -> None:
    """One line, also where it is another rank's; nothing is made of it."""
    settings = SETTINGS | {"trainer__callbacks": [poison(1, after=True)], "trainer__max_steps": 1}
    settings |= {"model__warmup_steps": 0, "trainer__accumulate_grad_batches": 1}
    errors = run_process(short(world, tmp_path / "run", trainer__strategy="sharded", **settings), 1)
    assert "the training broke in step 1" in errors
    assert not (tmp_path / "run/pipeline").exists() and not list(tmp_path.rglob("last.ckpt"))


def test_what_cannot_be_sharded_is_refused() -> None:
    """On a CPU, Lightning makes bf16-mixed of 16-mixed."""
    full, half = SimpleNamespace(precision="32-true"), SimpleNamespace(precision="16-mixed")
    for model, trainer, words in (
        (Finetune("model"), half, "use bf16-mixed"),
        (LightningModule(), full, "use ddp"),
        (Finetune("model", optimizer="adamw8bit"), full, "model.optimizer adamw"),
        (Finetune("model", lora_rank=4), full, "lora_rank"),
    ):
        with pytest.raises(ValueError, match=words):
            check(model, trainer)
