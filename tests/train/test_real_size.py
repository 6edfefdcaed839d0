"""Training at Stable Diffusion 2.1's size (1.29 billion random parameters) at 256 px, on the CPU.

  python -m pytest -m slow -s tests/train/test_real_size.py

Takes up to 20 GiB of memory and 30 GB of disk, and minutes on two cores; -s prints the peak
of memory. Each command has a process of its own, so that peaks are apart.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.conftest import CAPTIONS, ROOT
from tests.train.plan.test_plan import SD21
from train.base_model.clip import train_tokenizer
from train.plan.sizes import FLOAT, moments, read_configs, sizes_of

pytestmark = pytest.mark.slow
GIB = 2**30
LIMIT = 20 * GIB
STEPS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of SD 2.1 with random weights, in 16 bits."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder, default = tmp_path_factory.mktemp("real") / "model", torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        StableDiffusionPipeline(
            unet=UNet2DConditionModel(**SD21["unet"]),
            vae=AutoencoderKL(**SD21["vae"]),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    **SD21["text_encoder"], hidden_act="gelu", bos_token_id=0, eos_token_id=1, pad_token_id=1
                )
            ),
            tokenizer=train_tokenizer(CAPTIONS, 600, 77),
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)  # fmt: skip
    finally:
        torch.set_default_dtype(default)
    yield folder
    shutil.rmtree(folder.parent)


def limited() -> None:
    """A process that wants more gets a MemoryError, instead of the machine standing still."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT + 2 * GIB,) * 2)


def run(args: list[str], log: Path) -> int:
    """Peak resident memory, in bytes, of `python -m train` with these arguments."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "train", *args], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            preexec_fn=limited,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, log.read_text()[-2000:]
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize(
    "optimizer, rank", [("adamw", 16), ("adamw8bit", None), ("adamw", None)], ids=["lora", "8 bit", "adamw"]
)
def test_two_steps(optimizer: str, rank: int | None, model: Path, tmp_path: Path) -> None:
    """From a plan, which reads no weights, to an export; the cheapest first."""
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    images, random = tmp_path / "images", np.random.default_rng(0)
    images.mkdir()
    for number, caption in enumerate(CAPTIONS[:4]):
        pixels = random.integers(0, 255, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(caption)
    out = tmp_path / "run"
    args = [
        "--out", str(out), "--model.pipeline", str(model), "--model.gradient_checkpointing", "true",
        "--model.optimizer", optimizer, "--model.lora_rank", "null" if rank is None else str(rank),
        "--data.sources", json.dumps([str(images)]), "--data.cache", str(tmp_path / "cache"),
        "--data.resolution", "256", "--data.batch_size", "1", "--ema.decay", "0",
        "--monitor.every_n_steps", "1000", "--monitor.count", "1", "--monitor.num_inference_steps", "2",
        "--trainer.max_steps", str(STEPS), "--trainer.accelerator", "cpu", "--trainer.devices", "1",
        "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    assert run(["plan", *args], tmp_path / "plan.txt") < 2 * GIB
    assert "free in" in (tmp_path / "plan.txt").read_text()
    try:
        peak = run(["fit", *args], tmp_path / "fit.txt")
        tensors = sizes_of(read_configs(str(model)), False, rank).trained
        written = (out / "checkpoints/last.ckpt").stat().st_size
        print(f"\n{optimizer}, rank {rank}: {peak / GIB:.1f} GiB, a checkpoint of {written / GIB:.2f} GiB")
        losses = pd.read_csv(out / "metrics.csv")["loss"]
        assert len(losses) == STEPS and losses.between(0, 100).all()
        assert written == pytest.approx(FLOAT * sum(tensors) + moments(tensors, optimizer), rel=0.03)
        assert (out / "pipeline/model_index.json").exists() and peak < LIMIT
    finally:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
