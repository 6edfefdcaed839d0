"""The denoising loop, free of Lightning, and what a mitigation may do in it.

Each step asks the rules which predictions they want to see, runs the UNet once on exactly the rows that are
needed, lets the rules look, and applies the guidance scale that they decide per sample.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor


@dataclass
class DenoisingStep:
    """What a rule sees of one step. Predictions are None before the UNet ran; (B, C, H, W) after.

    A row whose prediction was not computed holds the other one, so that any scale gives that other one.
    """

    index: int
    timestep: int
    timesteps: Sequence[int]
    latents: Tensor
    alpha: float
    sigma: float
    prediction_type: str
    guidance_scale: float
    unconditional: Tensor | None = None
    conditional: Tensor | None = None

    @cached_property
    def difference_rms(self) -> Tensor:
        """d_t = RMS(eps_c - eps_u) per sample, (B,). For v-prediction eps_c - eps_u = alpha_t (v_c - v_u)."""
        scale = self.alpha if self.prediction_type == "v_prediction" else 1.0
        return rms(self.conditional - self.unconditional) * scale

    @cached_property
    def output_difference_rms(self) -> Tensor:
        """RMS(model output conditional - unconditional) per sample, (B,): v space for v-prediction models."""
        return rms(self.conditional - self.unconditional)

    def epsilon(self, output: Tensor) -> Tensor:
        """Model output -> noise prediction: eps = alpha_t v + sigma_t x_t (Salimans & Ho 2022)."""
        if self.prediction_type == "v_prediction":
            return self.alpha * output + self.sigma * self.latents
        return output


def rms(x: Tensor) -> Tensor:
    """Root mean square per sample: the L2 norm over the square root of the number of entries."""
    return x.float().flatten(1).pow(2).mean(1).sqrt()


class GuidanceRule:
    """What a mitigation may do; every hook is neutral here. One object serves one batch at a time.

    `guidance_scale` is a pure function of the step's timestep and the rule's state. State changes in
    `observe` only, so rows that nobody watches are known before the UNet runs.
    """

    def check(self, timesteps: Sequence[int], guidance_scale: float) -> None:
        """Raise ValueError when this rule cannot take effect on these timesteps at this scale."""

    def begin(self, batch_size: int, device: torch.device) -> None:
        """Forget the previous batch."""

    def watches(self, step: DenoisingStep) -> bool:
        """Whether both predictions of every row are wanted, whatever their scale."""
        return False

    def observe(self, step: DenoisingStep) -> None:
        """Look at the step's predictions."""

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        """The scale of each row, (B,), from what it would be without this rule."""
        return scale

    def transition_timestep(self) -> Tensor | None:
        """Timestep at which each row got the full scale, (B,), NaN where never; None: not its affair."""
        return None


@dataclass
class Denoised:
    """Final latents and what happened: traces are (B, steps), `nfe` counts UNet rows per sample, (B,)."""

    latents: Tensor
    timesteps: list[int]
    nfe: Tensor
    unconditional_rms: Tensor
    conditional_rms: Tensor
    difference_rms: Tensor
    guidance_scale: Tensor
    transition_timestep: Tensor | None


def check_scheduler(scheduler: Any) -> None:
    """ValueError unless latents are alpha x_0 + sigma noise and the model predicts noise or v."""
    if float(scheduler.init_noise_sigma) != 1.0:
        name = type(scheduler).__name__
        raise ValueError(
            f"{name} scales its latents by its own sigmas; use DDIM or DPMSolverMultistep (variance kept)"
        )
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"prediction_type {scheduler.config.prediction_type!r}: only epsilon and v_prediction work"
        )


def prepare(
    scheduler: Any,
    guidance_scale: float,
    num_inference_steps: int,
    rules: Sequence[GuidanceRule] = (),
    device: torch.device | str = "cpu",
) -> list[int]:
    """Set the scheduler's timesteps and return them; ValueError where it, or a rule, cannot work."""
    check_scheduler(scheduler)
    scheduler.set_timesteps(num_inference_steps, device=device)
    timesteps = [int(t) for t in scheduler.timesteps]
    for rule in rules:
        rule.check(timesteps, guidance_scale)
    return timesteps


def step_options(scheduler: Any, generators: list[Generator] | None) -> dict[str, Any]:
    """Stochastic schedulers draw from the samples' own generators."""
    takes = inspect.signature(scheduler.step).parameters
    return {"generator": generators} if generators and "generator" in takes else {}


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
    on_step: Callable[[], object] = lambda: None,
) -> Denoised:
    """Denoise a batch with per-sample guidance: eps = eps_u + s (eps_c - eps_u), s decided by the rules.

    Args:
        unet: diffusers UNet2DConditionModel, or anything called alike.
        scheduler: diffusers scheduler whose latents keep their variance (DDIM, DPM-Solver++ ...).
        latents: initial noise, (B, C, H, W).
        unconditional_embedding: of the empty or negative prompt, (B, tokens, width).
        conditional_embedding: of the prompts, (B, tokens, width).
        guidance_scale: s where no rule changes it. 0: unconditional, 1: conditional, negative: opposite.
        num_inference_steps: of the scheduler.
        rules: mitigations, applied in order.
        generators: one a sample, for stochastic schedulers.
        on_step: called after each step (progress).

    Raises:
        ValueError: scheduler or prediction type not supported, or a rule that cannot take effect.
    """
    timesteps = prepare(scheduler, guidance_scale, num_inference_steps, rules, latents.device)
    for rule in rules:
        rule.begin(len(latents), latents.device)
    options = step_options(scheduler, generators)
    alphas_cumprod = scheduler.alphas_cumprod.tolist()
    count = len(latents)
    nfe = torch.zeros(count, dtype=torch.long)
    rows: Rows | None = None  # the same for many steps: embeddings are gathered when they change
    trace: dict[str, list[Tensor]] = {"unconditional": [], "conditional": [], "difference": [], "scale": []}

    for index, t in enumerate(scheduler.timesteps):
        timestep = timesteps[index]
        step = DenoisingStep(
            index=index,
            timestep=timestep,
            timesteps=timesteps,
            latents=latents,
            alpha=math.sqrt(alphas_cumprod[timestep]),
            sigma=math.sqrt(1 - alphas_cumprod[timestep]),
            prediction_type=scheduler.config.prediction_type,
            guidance_scale=guidance_scale,
        )
        watched = any(rule.watches(step) for rule in rules)
        scale = decide(rules, step, count)
        # Which of the two each row needs. A watched batch needs both of all: no device sync.
        need_unconditional = torch.ones(count, dtype=torch.bool) if watched else (scale != 1).cpu()
        need_conditional = torch.ones(count, dtype=torch.bool) if watched else (scale != 0).cpu()
        if rows is None or not rows.serves(need_unconditional, need_conditional):
            rows = Rows.select(
                need_unconditional, need_conditional, unconditional_embedding, conditional_embedding
            )
        predict(unet, scheduler, step, t, rows)
        nfe += need_unconditional.long() + need_conditional.long()
        for rule in rules:
            rule.observe(step)
        scale = decide(rules, step, count).to(latents)
        record(trace, step, scale, need_unconditional, need_conditional)
        guided = step.unconditional + scale.view(-1, 1, 1, 1) * (step.conditional - step.unconditional)
        latents = scheduler.step(guided, t, latents, **options, return_dict=False)[0]
        on_step()

    transitions = [found.cpu() for rule in rules if (found := rule.transition_timestep()) is not None]
    return Denoised(
        latents=latents,
        timesteps=timesteps,
        nfe=nfe,
        unconditional_rms=torch.stack(trace["unconditional"], 1).cpu(),
        conditional_rms=torch.stack(trace["conditional"], 1).cpu(),
        difference_rms=torch.stack(trace["difference"], 1).cpu(),
        guidance_scale=torch.stack(trace["scale"], 1).cpu(),
        transition_timestep=torch.stack(transitions).amin(0) if transitions else None,  # the last to let go
    )


def decide(rules: Sequence[GuidanceRule], step: DenoisingStep, count: int) -> Tensor:
    """The scale of each row, (B,), after all rules."""
    scale = torch.full((count,), float(step.guidance_scale))
    for rule in rules:
        scale = rule.guidance_scale(step, scale)
    return scale


@dataclass
class Rows:
    """The rows of one UNet call: unconditional ones up to `split`, conditional ones from there, embedded."""

    need_unconditional: Tensor
    need_conditional: Tensor
    index: Tensor
    split: int
    embeddings: Tensor

    @classmethod
    def select(
        cls, need_unconditional: Tensor, need_conditional: Tensor, unconditional: Tensor, conditional: Tensor
    ) -> "Rows":
        """From which of the two each sample needs, (B,) on the CPU, and embeddings (B, tokens, width)."""
        split = int(need_unconditional.sum())
        needed = [need.nonzero()[:, 0] for need in (need_unconditional, need_conditional)]
        index = torch.cat(needed).to(conditional.device)
        embeddings = torch.cat([unconditional[index[:split]], conditional[index[split:]]])
        return cls(need_unconditional, need_conditional, index, split, embeddings)

    def serves(self, need_unconditional: Tensor, need_conditional: Tensor) -> bool:
        return torch.equal(self.need_unconditional, need_unconditional) and torch.equal(
            self.need_conditional, need_conditional
        )


def predict(unet: Callable, scheduler: Any, step: DenoisingStep, t: Tensor, rows: Rows) -> None:
    """Run the UNet once on the needed rows and put the predictions on the step."""
    inputs = scheduler.scale_model_input(step.latents, t)[rows.index]
    output = unet(inputs, t, encoder_hidden_states=rows.embeddings, return_dict=False)[0]
    if rows.need_unconditional.all() and rows.need_conditional.all():
        step.unconditional, step.conditional = output.chunk(2)
        return
    split, index = rows.split, rows.index
    unconditional, conditional = torch.empty_like(step.latents), torch.empty_like(step.latents)
    unconditional[index[:split]], conditional[index[split:]] = output[:split], output[split:]
    has_u = rows.need_unconditional.to(output.device).view(-1, 1, 1, 1)
    has_c = rows.need_conditional.to(output.device).view(-1, 1, 1, 1)
    step.unconditional = torch.where(has_u, unconditional, conditional)
    step.conditional = torch.where(has_c, conditional, unconditional)


def record(
    trace: dict[str, list[Tensor]], step: DenoisingStep, scale: Tensor, has_u: Tensor, has_c: Tensor
) -> None:
    """Magnitudes in epsilon space and the applied scale; NaN where not computed. No device sync."""
    has_u, has_c = has_u.to(scale.device), has_c.to(scale.device)
    nan = torch.full_like(scale, math.nan, dtype=torch.float32)
    trace["unconditional"].append(torch.where(has_u, rms(step.epsilon(step.unconditional)), nan))
    trace["conditional"].append(torch.where(has_c, rms(step.epsilon(step.conditional)), nan))
    trace["difference"].append(torch.where(has_u & has_c, step.difference_rms, nan))
    trace["scale"].append(scale.float())
