"""Rows against their limit: the calls of the networks alone, which any loop around them must make."""

from functools import partial

import torch
import torch.nn.functional as F

from callbacks.mitigations.static_transition import StaticTransition
from infer.models.pipeline import load_pipeline
from infer.plan.clock import now
from tests.bench.denoising import BATCH, ours, pipe_of
from tests.bench.rows import Seconds, Setting, Side, row
from tests.bench.training import BATCH as TRAINED
from tests.bench.training import LR, WARM
from tests.bench.training import ours as fit


def networks(setting: Setting, batch: int, waits_until: float | None) -> Side:
    """The UNet on random latents, one prediction of each sample before the timestep, then both; decoding."""
    pipe = pipe_of(setting)
    pipe.scheduler.set_timesteps(setting.steps)
    side, like = pipe.unet.config.sample_size, {"dtype": setting.dtype, "device": setting.device}
    latents = torch.randn(2 * batch, pipe.unet.config.in_channels, side, side).to(**like)
    text = torch.randn(
        2 * batch, pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim
    ).to(**like)  # fmt: skip

    @torch.no_grad()
    def call() -> None:
        for t in pipe.scheduler.timesteps:
            rows = batch if waits_until is not None and t > waits_until else 2 * batch
            pipe.unet(latents[:rows], t, encoder_hidden_states=text[:rows])
        pipe.vae.decode(latents[:batch])

    return call


@row("ordinary guidance", "the networks alone")
def limit_plain(setting: Setting) -> tuple[Side, Side]:
    return ours(setting, pipe_of(setting), BATCH), networks(setting, BATCH, None)


def limit_stp(setting: Setting, size: int) -> tuple[Side, Side]:
    rule = StaticTransition(500)
    return ours(setting, pipe_of(setting), size, rule), networks(setting, size, rule.timestep)


for size in (16, 4, 1):
    row(f"STP(500), batch {size}", "the networks alone", f"limit_stp_{size}")(partial(limit_stp, size=size))


def updates(setting: Setting) -> Seconds:
    """The UNet on random latents, forward and back, and its optimizer."""
    pipe = load_pipeline(setting.pipeline).to(setting.device)
    unet, side = pipe.unet.train().requires_grad_(True), pipe.unet.config.sample_size
    optimizer = torch.optim.AdamW(unet.parameters(), LR, fused=True)
    latents = torch.randn(TRAINED, unet.config.in_channels, side, side, device=setting.device)
    text = torch.randn(TRAINED, pipe.tokenizer.model_max_length, unet.config.cross_attention_dim).to(latents)
    for done in range(WARM + setting.steps):
        if done == WARM:
            started = now(setting.device)
        t = torch.randint(1000, (TRAINED,), device=setting.device)
        F.mse_loss(unet(latents, t, text).sample, latents).backward()
        optimizer.step(), optimizer.zero_grad()
    return Seconds(now(setting.device) - started)


@row("training steps with the cache", "the UNet and its optimizer alone")
def limit_train(setting: Setting) -> tuple[Side, Side]:
    return partial(fit, setting, setting.folder / "cache"), partial(updates, setting)
