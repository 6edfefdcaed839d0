"""Rows of training: optimizer steps of `python -m train fit` against a plain loop over the same images.

The plain loop is what diffusers' text-to-image example does in each step: decode, encode images and captions,
noise, predict, step. It is written anew here, without that script's options.
"""

import io
import json
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from data.captioned import load_captioned
from data.emoji import SHARDS
from infer.models.pipeline import load_pipeline
from infer.plan.clock import now
from tests.bench.rows import Seconds, Setting, Side, row
from train.cli import build
from train.run_folder.claim import claim

WARM, BATCH, LR = 3, 16, 1e-4  # first steps that are not timed; images a step; learning rate
SHARD = f"{SHARDS}/noto-00000.tar.gz"
number = count()


class StepSeconds(pl.Callback):
    """Seconds of the steps after the first `WARM`."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == WARM:
            self.started = now(pl_module.device)
        if trainer.global_step == trainer.max_steps:
            self.seconds = Seconds(now(pl_module.device) - self.started)


def fit(setting: Setting, cache: Path | None, *callbacks: pl.Callback) -> Any:
    """The command line of a finished fit, whose cache is filled before the first step."""
    options = {
        "out": setting.folder / f"fit-{next(number)}",
        "model.pipeline": setting.pipeline,
        "model.lr": LR,
        "data.sources": json.dumps([SHARD]),
        "data.limit": setting.images,
        "data.batch_size": BATCH,
        "data.flip": "true",
        "data.cache": cache or "null",
        "ema.decay": 0,
        "monitor.count": 1,
        "monitor.num_inference_steps": 1,
        "trainer.max_steps": WARM + setting.steps,
        "trainer.gradient_clip_val": 1,
        "trainer.accelerator": "gpu" if setting.device == "cuda" else "cpu",
        "trainer.devices": 1,
        "trainer.enable_progress_bar": "false",
    }
    cli = build("fit", [f"--{name}={value}" for name, value in options.items()])
    cli.trainer.callbacks.extend(callbacks)
    with claim(cli.folder, cli.parser.dump(cli.config, skip_none=False)):
        cli.trainer.fit(cli.model, cli.datamodule)
    return cli


def ours(setting: Setting, cache: Path | None) -> Seconds:
    watch = StepSeconds()
    fit(setting, cache, watch)
    return watch.seconds


class Pictures(torch.utils.data.Dataset):
    """Decoded when they are asked for: pixels in -1..1, half of them mirrored, and the caption's tokens."""

    def __init__(self, setting: Setting, pipe: Any):
        samples = load_captioned(SHARD).samples[: setting.images]
        self.encoded = [(sample.image, sample.caption) for sample in samples]
        self.side, self.tokenizer = pipe.unet.config.sample_size * pipe.vae_scale_factor, pipe.tokenizer

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        encoded, caption = self.encoded[index]
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        image = ImageOps.fit(image, (self.side, self.side), Image.Resampling.BILINEAR)
        image = ImageOps.mirror(image) if torch.rand(()) < 0.5 else image
        tokens = self.tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt")
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()) / 127.5 - 1
        return {"pixels": pixels, "tokens": tokens.input_ids[0]}


def plain_loop(setting: Setting) -> Seconds:
    """Latents of VAE(x), noise n and t uniform; the loss is the mean of (unet(x_t, t, c) - target)^2."""
    accelerator = Accelerator(cpu=setting.device == "cpu")
    pipe = load_pipeline(setting.pipeline).to(accelerator.device)
    unet, schedule = pipe.unet.train().requires_grad_(True), DDPMScheduler.from_config(pipe.scheduler.config)
    optimizer = torch.optim.AdamW(unet.parameters(), LR, weight_decay=1e-2)
    loader = DataLoader(Pictures(setting, pipe), BATCH, shuffle=True, drop_last=True)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)
    rate = accelerator.prepare(get_scheduler("constant", optimizer))
    done, started = 0, 0.0
    while done < WARM + setting.steps:
        for batch in loader:
            with torch.no_grad():
                latents = pipe.vae.encode(batch["pixels"]).latent_dist.sample()
                latents = latents * pipe.vae.config.scaling_factor
                text = pipe.text_encoder(batch["tokens"])[0]
            noise = torch.randn_like(latents)
            t = torch.randint(schedule.config.num_train_timesteps, (len(latents),), device=latents.device)
            target = noise
            if schedule.config.prediction_type == "v_prediction":
                target = schedule.get_velocity(latents, noise, t)
            prediction = unet(schedule.add_noise(latents, noise, t), t, text).sample
            accelerator.backward(F.mse_loss(prediction.float(), target.float()))
            accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step(), rate.step(), optimizer.zero_grad()
            done += 1
            if done == WARM:
                started = now(setting.device)
            if done == WARM + setting.steps:
                break
    return Seconds(now(setting.device) - started)


@row("training steps with the cache", "the steps of diffusers' example")
def train_cached(setting: Setting) -> tuple[Side, Side]:
    return partial(ours, setting, setting.folder / "cache"), partial(plain_loop, setting)


@row("training steps without a cache", "the steps of diffusers' example")
def train_uncached(setting: Setting) -> tuple[Side, Side]:
    return partial(ours, setting, None), partial(plain_loop, setting)
