"""The denoising loop, free of Lightning."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from infer.denoising.guidance import Guidance, Trace
from infer.denoising.hooks import Batch, DenoisingStep, GuidanceRule, overrides
from infer.denoising.schedulers import check_sampling, noise_levels, set_timesteps
from infer.denoising.text_projections import projected_once

ONE_RULE = {  # hooks that one rule of a run may have, and what they change
    "combine": "combined prediction",
    "attention_processors": "attention",
    "initial_noise": "initial noise",
}


@dataclass(frozen=True)
class Denoised(Trace):
    """The trace; the final latents, (B, C, H, W); and the step after which a sample's were not finite.

    `failed_at`, (B,), is -1 where they always were.
    """

    latents: Tensor
    failed_at: Tensor


def concatenated(runs: Sequence[Denoised]) -> Denoised:
    """The runs of the parts of a batch, under the same rules, as one."""
    columns = {field.name: [getattr(run, field.name) for run in runs] for field in fields(Denoised)}
    return Denoised(**{name: None if of[0] is None else torch.cat(of) for name, of in columns.items()})


def prepare(
    scheduler: Any, guidance_scale: float, num_inference_steps: int, rules: Sequence[GuidanceRule] = ()
) -> list[float]:
    """Set the scheduler's timesteps and return them; ValueError where it, or a rule, cannot work."""
    timesteps = check_sampling(scheduler, num_inference_steps)
    for rule in rules:
        rule.check(timesteps, guidance_scale)
        if len(rules) > 1 and not rule.combines:
            raise ValueError(f"{type(rule).__name__} cannot be combined with another mitigation")
    for hook, what in ONE_RULE.items():
        if sum(overrides(rule, hook) for rule in rules) > 1:
            raise ValueError(f"two mitigations change the {what}, and one can: leave the others out")
    return timesteps


@torch.no_grad()
def denoise(
    unet: Callable, scheduler: Any, latents: Tensor, unconditional_embedding: Tensor,
    conditional_embedding: Tensor, guidance_scale: float, num_inference_steps: int,
    rules: Sequence[GuidanceRule] = (), generators: list[Generator] | None = None, bar: tqdm | None = None,
) -> Denoised:  # fmt: skip
    """Denoise a batch with per-sample guidance: eps = eps_u + s (eps_c - eps_u), s decided by the rules.

    Args:
        unet: diffusers UNet2DConditionModel, or anything called in the same way.
        scheduler: diffusers scheduler, one of `infer.denoising.schedulers.SCHEDULERS`.
        latents: initial noise of unit variance, (B, C, H, W).
        unconditional_embedding: of the empty or negative prompt, (B, tokens, width).
        conditional_embedding: of the prompts, (B, tokens, width).
        guidance_scale: s where no rule changes it. 0: unconditional, 1: conditional, negative: opposite.
        num_inference_steps: of the scheduler.
        rules: mitigations, applied in order.
        generators: one a sample, for stochastic schedulers.
        bar: counts the steps.

    Raises:
        ValueError: scheduler or prediction type not supported, or a rule that cannot take effect.
    """
    timesteps = prepare(scheduler, guidance_scale, num_inference_steps, rules)
    bar = tqdm(disable=True, total=0) if bar is None else bar
    bar.total = (bar.total or 0) + len(timesteps)

    seeds = [generator.initial_seed() for generator in generators or ()]
    batch = Batch(
        unet, scheduler, latents, unconditional_embedding, conditional_embedding, guidance_scale, seeds
    )
    batch.denoise = partial(denoise_again, batch, num_inference_steps, generators, bar)
    change_inputs(batch, rules)
    set_timesteps(scheduler, num_inference_steps)  # a rule may have used the scheduler
    levels, clock = noise_levels(scheduler), scheduler.timesteps.to(latents.device)
    options = step_options(scheduler, generators)
    guidance = Guidance(rules, len(latents), latents.device, batch.nfe, batch.gradient_passes)
    latents = batch.noise * scheduler.init_noise_sigma
    failed_at = torch.full((len(latents),), -1, device=latents.device)
    fixed = not any(overrides(rule, "step_embedding") for rule in rules)
    with attention_of(rules, batch), projected_once(unet):
        for index, t in enumerate(scheduler.timesteps):
            inputs = scheduler.scale_model_input(latents, t)
            step = DenoisingStep(
                index, timesteps[index], timesteps, inputs, *levels[index],
                scheduler.config.prediction_type, guidance_scale,
            )  # fmt: skip
            rows = guidance.needed_rows(step)
            batch.unconditional_rows, batch.conditional_samples = rows.split, rows.index[rows.split :]
            conditional = batch.conditional_embedding
            for rule in rules:
                conditional = rule.step_embedding(step, conditional)
            embeddings = batch.unconditional_embedding, conditional
            embedding = rows.texts(*embeddings) if fixed else rows.select(*embeddings)
            output = inputs[rows.index]
            if len(output):
                output = unet(output, clock[index], encoder_hidden_states=embedding, return_dict=False)[0]
            batch.conditional_samples = None
            prediction = guidance.mix(step, rows, output)
            before = latents
            latents = scheduler.step(prediction, t, before, **options, return_dict=False)[0]
            for rule in rules:
                latents = rule.after_step(step, before, latents)
            broken = ~latents.isfinite().flatten(1).all(1) & (failed_at < 0)
            failed_at = failed_at.masked_fill(broken, index)
            bar.update()
    return Denoised(**vars(guidance.trace()), latents=latents, failed_at=failed_at.cpu())


def change_inputs(batch: Batch, rules: Sequence[GuidanceRule]) -> None:
    """What the rules make of the batch before the first step."""
    for rule in rules:
        rule.begin(len(batch.noise), batch.noise.device)
    for rule in rules:
        batch.unconditional_embedding = rule.unconditional_embedding(batch)
    for rule in rules:
        batch.conditional_embedding = rule.conditional_embedding(batch)
    for rule in rules:
        batch.noise = rule.initial_noise(batch)
    for rule in rules:
        rule.before_denoising(batch)


def denoise_again(
    batch: Batch, num_inference_steps: int, generators: list[Generator] | None, bar: tqdm,
    rules: Sequence[GuidanceRule], rows: Tensor | None = None, noise: Tensor | None = None,
) -> Denoised:  # fmt: skip
    """The batch, or some of its samples, under other rules; its rows are counted, no generator is moved."""
    rows = torch.arange(len(batch.noise)) if rows is None else rows
    own = rows.to(batch.noise.device)
    run = denoise(
        batch.unet, deepcopy(batch.scheduler), batch.noise[own] if noise is None else noise,
        batch.unconditional_embedding[own], batch.conditional_embedding[own], batch.guidance_scale,
        num_inference_steps, rules, copied(generators and [generators[row] for row in rows]), bar,
    )  # fmt: skip
    batch.nfe[rows] += run.nfe
    batch.gradient_passes[rows] += run.gradient_passes
    return run


def step_options(scheduler: Any, generators: list[Generator] | None) -> dict[str, Any]:
    """Stochastic schedulers draw from the samples' own generators."""
    takes = inspect.signature(scheduler.step).parameters
    return {"generator": generators} if generators and "generator" in takes else {}


def copied(generators: list[Generator] | None) -> list[Generator] | None:
    """Generators in the same state, which draw without moving these."""
    return generators and [torch.Generator().set_state(generator.get_state()) for generator in generators]


@contextmanager
def attention_of(rules: Sequence[GuidanceRule], batch: Batch) -> Iterator[None]:
    """The rules' attention processors are in place; each rule sees those of the rules before it."""
    rules = [rule for rule in rules if overrides(rule, "attention_processors")]
    former = dict(batch.unet.attn_processors) if rules else {}
    try:
        for rule in rules:
            batch.unet.set_attn_processor(batch.unet.attn_processors | rule.attention_processors(batch))
        yield
    finally:
        if rules:
            batch.unet.set_attn_processor(former)
