"""The denoising loop, free of Lightning."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from infer.denoising.guidance import Guidance, Rows, Trace
from infer.denoising.hooks import DenoisingStep, GuidanceRule
from infer.denoising.schedulers import check_grid, check_scheduler, continued, noise_levels


@dataclass(frozen=True)
class Denoised(Trace):
    """The trace; the final latents, (B, C, H, W); and the step after which a sample's were not finite.

    `failed_at`, (B,), is -1 where they always were.
    """

    latents: Tensor
    failed_at: Tensor


def prepare(
    scheduler: Any,
    guidance_scale: float,
    num_inference_steps: int,
    rules: Sequence[GuidanceRule] = (),
) -> list[float]:
    """Set the scheduler's timesteps and return them; ValueError where it, or a rule, cannot work.

    They stay on the CPU: a scheduler that looks a noise level up by them does not wait for the device.
    """
    check_scheduler(scheduler)
    known = scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= known:
        raise ValueError(f"num_inference_steps must be within 1..{known}, not {num_inference_steps}")
    try:
        scheduler.set_timesteps(num_inference_steps)
    except ValueError as error:  # goes on about options that are not ours
        why, name = re.split(r"(?<=\.)\s", str(error))[0], type(scheduler).__name__
        raise ValueError(f"{name} cannot take {num_inference_steps} steps: {why}") from error
    timesteps = scheduler.timesteps.tolist()
    check_grid(scheduler)
    for rule in rules:
        rule.check(timesteps, guidance_scale, scheduler.config.num_train_timesteps)
    for what in ("rehearsal", "continuation"):
        if len(rules) > 1 and any(getattr(rule, what) for rule in rules):
            raise ValueError(f"a mitigation with a {what} cannot be combined with another")
    if sum(type(rule).alternative_scale is not GuidanceRule.alternative_scale for rule in rules) > 1:
        raise ValueError("two mitigations guide towards an alternative, and one can: leave the others out")
    if any(rule.continuation for rule in rules):
        for index in range(len(timesteps)):  # can it, wherever a sample leaves?
            continued(scheduler, index, rules[0].continuation.num_inference_steps)
    return timesteps


def step_options(scheduler: Any, generators: list[Generator] | None) -> dict[str, Any]:
    """Stochastic schedulers draw from the samples' own generators."""
    takes = inspect.signature(scheduler.step).parameters
    return {"generator": generators} if generators and "generator" in takes else {}


def copied(generators: list[Generator] | None) -> list[Generator] | None:
    """Generators in the same state, which draw without moving these."""
    return generators and [torch.Generator().set_state(generator.get_state()) for generator in generators]


@torch.no_grad()
def denoise(
    unet: Callable,
    scheduler: Any,
    latents: Tensor,
    unconditional_embedding: Tensor,
    conditional_embedding: Tensor,
    guidance_scale: float,
    num_inference_steps: int,
    rules: Sequence[GuidanceRule] = (),
    generators: list[Generator] | None = None,
    bar: tqdm | None = None,
) -> Denoised:
    """Denoise a batch with per-sample guidance: eps = eps_u + s (eps_c - eps_u), s decided by the rules.

    Args:
        unet: diffusers UNet2DConditionModel, or anything called alike.
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
    device, count = latents.device, len(latents)
    prepare(scheduler, guidance_scale, num_inference_steps, rules)
    bar = tqdm(disable=True, total=0) if bar is None else bar
    bar.total = (bar.total or 0) + len(scheduler.timesteps)
    embeddings = (unconditional_embedding, conditional_embedding)
    guidance = Guidance(rules, count, device)
    for rule in rules:
        if rule.rehearsal:
            rehearsed = denoise(
                unet, scheduler, latents, *embeddings, guidance_scale, num_inference_steps,
                [rule.rehearsal], copied(generators), bar,
            )  # fmt: skip
            guidance.nfe += rehearsed.nfe
            scheduler.set_timesteps(num_inference_steps)
            rule.rehearsed(scheduler.timesteps.tolist())
    continuation = next((rule.continuation for rule in rules if rule.continuation), None)
    run = Run(unet, scheduler, scheduler.timesteps, embeddings, guidance, guidance_scale, generators, bar)
    latents = run(latents * scheduler.init_noise_sigma, leave=continuation is not None)

    for index, (left, started, guided, own) in run.left.items():
        fresh, timesteps = continued(scheduler, index, continuation.num_inference_steps)
        bar.total += len(timesteps)
        rest = Run(unet, fresh, timesteps, embeddings, guidance, guidance_scale, own, bar)
        finished = rest(started, active=left, first=guided, observe=False)
        here = left.to(device).view(-1, 1, 1, 1)
        latents = torch.where(here, finished, latents)
        failed_at = torch.where(rest.failed_at < 0, -1, rest.failed_at + index)
        run.failed_at = torch.where(left.to(device) & (run.failed_at < 0), failed_at, run.failed_at)

    return Denoised(**vars(guidance.trace()), latents=latents, failed_at=run.failed_at.cpu())


class Run:
    """The steps of one scheduler. `left` keeps, by step, the samples that go on elsewhere from there."""

    def __init__(
        self, unet: Callable, scheduler: Any, timesteps: Tensor, embeddings: tuple[Tensor, Tensor],
        guidance: Guidance, guidance_scale: float, generators: list[Generator] | None, bar: tqdm,
    ):  # fmt: skip
        self.unet, self.scheduler, self.timesteps, self.embeddings = unet, scheduler, timesteps, embeddings
        self.guidance, self.guidance_scale, self.bar = guidance, guidance_scale, bar
        self.generators, self.options = generators, step_options(scheduler, generators)
        self.left: dict[int, tuple] = {}  # index -> samples, latents, guided prediction, generators
        self.rows: Rows | None = None

    def __call__(
        self, latents: Tensor, active: Tensor | None = None, first: Tensor | None = None,
        observe: bool = True, leave: bool = False,
    ) -> Tensor:  # fmt: skip
        """The final latents of the active samples; `first`: the first step's prediction, if it is known."""
        count, device = len(latents), latents.device
        timesteps, clock = self.timesteps.tolist(), self.timesteps.to(device)
        levels = noise_levels(self.scheduler)[-len(timesteps) :]
        active = torch.ones(count, dtype=torch.bool) if active is None else active
        self.failed_at = torch.full((count,), -1, device=device)
        for index, t in enumerate(self.timesteps):
            inputs, kind = self.scheduler.scale_model_input(latents, t), self.scheduler.config.prediction_type
            step = DenoisingStep(
                index, timesteps[index], timesteps, inputs, *levels[index], kind, self.guidance_scale
            )
            if index == 0 and first is not None:
                guided = first
            else:
                guided = self.guidance(step, partial(self.predict, step, clock[index]), active, observe)
            if leave:
                active = self.let_go(index, latents, guided, active)
                if not active.any():
                    break
            latents = self.scheduler.step(guided, t, latents, **self.options, return_dict=False)[0]
            broken = ~latents.isfinite().flatten(1).all(1) & (self.failed_at < 0)
            self.failed_at = self.failed_at.masked_fill(broken, index)
            for rule in self.guidance.rules:
                rule.stepped(step, latents)
            self.bar.update()
        return latents

    def predict(self, step: DenoisingStep, t: Tensor, rows: Rows) -> Tensor:
        if self.rows is not rows:  # embeddings are gathered when the rows change
            self.rows, self.gathered = rows, rows.pick(*self.embeddings)
        inputs = step.latents[rows.index]
        return self.unet(inputs, t, encoder_hidden_states=self.gathered, return_dict=False)[0]

    def let_go(self, index: int, latents: Tensor, guided: Tensor, active: Tensor) -> Tensor:
        """Take samples out that have passed their transition; who is still here."""
        passed = self.guidance.rules[0].leaving().cpu() & active
        if passed.any():
            self.left[index] = (passed, latents, guided, copied(self.generators))
        return active & ~passed
