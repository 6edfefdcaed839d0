"""The hooks of a mitigation in the denoising loop, and what they are given: requests, batches, steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from infer.denoising.noise import sample_seed
from infer.denoising.requests import Request


@dataclass
class DenoisingStep:
    """What a rule sees of one step. Predictions are None before the model ran; (B, C, H, W) after.

    `latents` are what the model is given: x_t = alpha x_0 + sigma noise with alpha^2 + sigma^2 = 1 (flow
    models: alpha + sigma = 1), also where the scheduler keeps them at another scale. Where only one of a
    row's predictions was evaluated it stands for the other, so that the mix of the step is right without it;
    where none was, both are 0. `scale`, (B,), is s of each row after all rules, for `combine`.
    """

    index: int
    timestep: float
    timesteps: Sequence[float]
    latents: Tensor | None
    alpha: float
    sigma: float
    prediction_type: str  # epsilon, v_prediction or flow_prediction
    guidance_scale: float
    unconditional: Tensor | None = None
    conditional: Tensor | None = None
    scale: Tensor | None = None

    @cached_property
    def difference_rms(self) -> Tensor:
        """d_t = RMS(eps_c - eps_u) per sample, (B,); eps_c - eps_u = alpha_t (v_c - v_u) for v and flows."""
        return self.output_difference_rms * (1.0 if self.prediction_type == "epsilon" else self.alpha)

    @cached_property
    def output_difference_rms(self) -> Tensor:
        """RMS(model output conditional - unconditional) per sample, (B,): v space for v-prediction models."""
        return rms(self.conditional - self.unconditional)

    def epsilon(self, output: Tensor) -> Tensor:
        """Model output -> noise prediction.

        v-prediction: eps = alpha_t v + sigma_t x_t (Salimans & Ho 2022). Flow: v = noise - x_0, so
        eps = x_t + alpha_t v.
        """
        if self.prediction_type == "v_prediction":
            return self.alpha * output + self.sigma * self.latents
        if self.prediction_type == "flow_prediction":
            return self.latents + self.alpha * output
        return output


def rms(x: Tensor) -> Tensor:
    """Root mean square per sample: the L2 norm over the square root of the number of entries."""
    return x.float().flatten(1).pow(2).mean(1).sqrt()


def layout(latents: Tensor) -> Tensor:
    """Latents less the mean of each channel, at unit length, (B, C H W): what is where, not which colours."""
    latents = latents.float()
    return F.normalize((latents - latents.mean((2, 3), keepdim=True)).flatten(1))


@dataclass
class Batch:
    """What the loop is about to denoise: for hooks that change the inputs, or run the model themselves.

    Attributes:
        unet: the model, called as `unet(latents, t, encoder_hidden_states=..., return_dict=False)[0]`.
        scheduler: with its timesteps set.
        noise: initial, of unit variance, (B, C, H, W).
        unconditional_embedding: (B, tokens, width).
        conditional_embedding: (B, tokens, width).
        guidance_scale: of the run.
        seeds: of the samples' noise; their row numbers where the loop was given no generators.
        nfe: UNet rows spent on each sample, (B,), CPU. Hooks that run the model add theirs.
        gradient_passes: those of the rows that were also differentiated, (B,), CPU. Hooks add theirs.
        denoise: rules, rows, noise -> Denoised: all steps under other rules, of the whole batch from its own
            noise, or of these samples, (n,) on the CPU, from that noise. The UNet rows are counted; the
            scheduler and the samples' generators stay as they are.
        unconditional_rows: so many rows of the present model call are unconditional, the others conditional.
        conditional_samples: the samples of these others, in order; None in a call that is not the loop's own.
    """

    unet: Callable
    scheduler: Any
    noise: Tensor
    unconditional_embedding: Tensor
    conditional_embedding: Tensor
    guidance_scale: float
    seeds: Sequence[int] = ()
    denoise: Callable[..., Any] | None = None
    unconditional_rows: int = 0
    conditional_samples: Tensor | None = None

    def __post_init__(self) -> None:
        self.seeds = self.seeds or range(len(self.noise))
        self.nfe = torch.zeros(len(self.noise), dtype=torch.long)
        self.gradient_passes = torch.zeros_like(self.nfe)

    def own_generators(self, purpose: str) -> list[Generator]:
        """A CPU generator for each sample, from its seed and `purpose`; no other generator is moved."""
        return [Generator().manual_seed(sample_seed(seed, purpose, 0)) for seed in self.seeds]


class GuidanceRule:
    """What a mitigation may do; every hook is neutral here. One object serves one batch at a time.

    The hooks, in the order of the calls: `check`, `check_requests` (once a run); `change_prompts`, `prepare`,
    `begin`, `unconditional_embedding`, `conditional_embedding`, `initial_noise`, `before_denoising`,
    `attention_processors` (once a batch); `guidance_scale`, `needs`, `step_embedding`, `observe`,
    `guidance_scale` again, `combine`, `after_step` (each step). Each hook is called for all rules before the
    next one. A rule changes its state in `observe` only: so what a step needs is known before the model runs.
    """

    watched_space: str | None = None  # of the observed difference: epsilon, model_output or latents
    combines: bool = True  # False: works as the only rule of a run
    alternatives: list[str | None] | None = None  # the prompt that each sample of the batch is guided towards
    texts: Sequence[str] = ()  # further texts that the model is shown

    def check(self, timesteps: Sequence[float], guidance_scale: float) -> None:
        """Raise ValueError when this rule cannot take effect on these timesteps at this scale."""

    def check_requests(self, pipe: Any, requests: Sequence[Request]) -> None:
        """Raise ValueError when this rule cannot take effect on any request of a run, or with the model."""

    def change_prompts(self, pipe: Any, requests: Sequence[Request]) -> Sequence[Request]:
        """The requests with the prompts that the model is shown in place of their own."""
        return requests

    def prepare(self, pipe: Any, requests: Sequence[Request], device: torch.device) -> None:
        """Embed further texts of the batch with the pipeline, where the rule needs them."""

    def begin(self, batch_size: int, device: torch.device) -> None:
        """Forget the previous batch."""

    def unconditional_embedding(self, batch: Batch) -> Tensor:
        """The embedding in place of the empty or negative prompts', (B, tokens, width)."""
        return batch.unconditional_embedding

    def conditional_embedding(self, batch: Batch) -> Tensor:
        """The embedding in place of the prompts', (B, tokens, width)."""
        return batch.conditional_embedding

    def initial_noise(self, batch: Batch) -> Tensor:
        """The noise to start from, of unit variance, (B, C, H, W)."""
        return batch.noise

    def before_denoising(self, batch: Batch) -> None:
        """Whatever else the rule runs before the first step, with the final embedding and noise."""

    def attention_processors(self, batch: Batch) -> dict[str, Any]:
        """Attention processors for this batch, by their names in `batch.unet.attn_processors`.

        `to_k` and `to_v` return a text's keys and values again at each step: do not change them in place.
        """
        return {}

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        """s of each row in u + s (c - u), (B,), from what it would be without this rule."""
        return scale

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rows of which the unconditional, and the conditional, prediction is needed, (B,) bool each.

        None: those that `scale`, s of each row after all rules, needs. `both(scale)`: both of every row.
        """
        return None

    def step_embedding(self, step: DenoisingStep, embedding: Tensor) -> Tensor:
        """The conditional embedding of this step, (B, tokens, width), from what it would be."""
        return embedding

    def observe(self, step: DenoisingStep) -> None:
        """Read the step's predictions, and update the rule's state."""

    def combine(self, step: DenoisingStep, prediction: Tensor) -> Tensor:
        """The combined prediction for the solver, (B, C, H, W), from u + s (c - u)."""
        return prediction

    def after_step(self, step: DenoisingStep, before: Tensor, after: Tensor) -> Tensor:
        """The latents after the solver's step, (B, C, H, W); before and after at the scheduler's scale."""
        return after

    def transition_timestep(self) -> Tensor | None:
        """Timestep at which each row passed its transition, (B,); None for a rule without transitions.

        NaN where a row never did, inf where a gate gave it ordinary guidance from the start.
        """
        return None


def both(scale: Tensor) -> tuple[Tensor, Tensor]:
    """What `needs` returns for both predictions of every row."""
    every = torch.ones(len(scale), dtype=torch.bool)
    return every, every


def overrides(rule: GuidanceRule, *hooks: str) -> bool:
    """Whether the rule has a version of its own of one of these hooks."""
    return any(getattr(type(rule), hook) is not getattr(GuidanceRule, hook) for hook in hooks)
