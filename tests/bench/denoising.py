"""Rows of denoising: from prompts to images, the same prompts, seeds and settings on both sides."""

from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from callbacks.adapters.stock import mitigate
from callbacks.mitigations.detour import Detour
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.guidance import Guidance
from infer.denoising.hooks import GuidanceRule
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from infer.models.pipeline import load_pipeline
from tests.bench.rows import Setting, Side, row
from train.lora_layers import add_lora, save_lora

PROMPTS = ["a red car", "a blue dog", "an old map", "a cup of tea"]
SCALE = 7.5
BATCH = 4


@cache
def pipe_of(setting: Setting, lora: str | None = None) -> Any:
    return load_pipeline(setting.pipeline, dtype=setting.dtype, lora=lora).to(setting.device)


def prompts_of(batch: int) -> list[str]:
    return [PROMPTS[number % len(PROMPTS)] for number in range(batch)]


def ours(setting: Setting, pipe: Any, batch: int, *rules: GuidanceRule) -> Side:
    """A batch by this project's loop."""
    requests = [Request(f"s{n}", 0, prompt, n) for n, prompt in enumerate(prompts_of(batch))]
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return lambda: make_images(pipe, pipe.device, requests, side, SCALE, setting.steps, rules=rules)


def stock(setting: Setting, pipe: Any, batch: int) -> Side:
    """The same batch by a pipeline's own call."""

    def make() -> Any:
        seeds = [torch.Generator().manual_seed(number) for number in range(batch)]
        return pipe(
            prompts_of(batch), generator=seeds, num_inference_steps=setting.steps, guidance_scale=SCALE
        )

    return make


@row("ordinary guidance, our loop", "stock pipeline")
def plain(setting: Setting) -> tuple[Side, Side]:
    pipe = pipe_of(setting)
    return ours(setting, pipe, BATCH), stock(setting, pipe, BATCH)


@row("mitigate(pipe) without a rule", "stock pipeline")
def mitigated(setting: Setting) -> tuple[Side, Side]:
    pipe = pipe_of(setting)
    return stock(setting, mitigate(pipe), BATCH), stock(setting, pipe, BATCH)


@row("our loop with its traces", "the same, which records none")
def traces(setting: Setting) -> tuple[Side, Side]:
    traced = ours(setting, pipe_of(setting), BATCH)
    nothing = (torch.zeros(BATCH),) * 5

    def untraced() -> Any:
        def record(guidance: Guidance, *_: Any) -> None:
            guidance.steps.append(nothing)

        with patch.object(Guidance, "record", record):
            return traced()

    return traced, untraced


def rule_over_plain(setting: Setting, make: Any, batch: int = BATCH) -> tuple[Side, Side]:
    pipe = pipe_of(setting)
    return ours(setting, pipe, batch, make()), ours(setting, pipe, batch)


for size in (16, 4, 1):
    row(f"STP(500), batch {size}", "ordinary guidance", f"stp_{size}")(
        partial(rule_over_plain, make=partial(StaticTransition, 500), batch=size)
    )


@row("OG+STP(650, -2)", "ordinary guidance")
def og_stp(setting: Setting) -> tuple[Side, Side]:
    return rule_over_plain(setting, lambda: StaticTransition(650, -2.0))


@row("DTP", "ordinary guidance")
def dtp(setting: Setting) -> tuple[Side, Side]:
    return rule_over_plain(setting, DynamicTransition)


@row("detour over a base model", "ordinary guidance")
def detour_base(setting: Setting) -> tuple[Side, Side]:
    base = setting.pipeline
    rule = partial(Detour, StaticTransition(650), base_pipeline=base, repulsion=1.5)
    return rule_over_plain(setting, rule)


@row("detour, a LoRA as its own base", "ordinary guidance of the LoRA")
def detour_lora(setting: Setting) -> tuple[Side, Side]:
    pipe = pipe_of(setting, lora_of(setting))
    rule = Detour(StaticTransition(650), without_lora=True, repulsion=1.5)
    return ours(setting, pipe, BATCH, rule), ours(setting, pipe, BATCH)


@cache
def lora_of(setting: Setting) -> str:
    """Folder of a small random LoRA of rank 8."""
    unet, folder = load_pipeline(setting.pipeline).unet, Path(setting.folder, "lora")
    add_lora(unet, 8, None)
    for name, weight in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    save_lora(folder, unet)
    return str(folder)
