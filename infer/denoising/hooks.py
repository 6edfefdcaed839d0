"""What a mitigation may do in a denoising loop: its hooks, and what it sees of a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from infer.denoising.requests import Request


@dataclass
class DenoisingStep:
    """What a rule sees of one step. Predictions are None before the model ran; (B, C, H, W) after.

    `latents` are what the model is given: x_t = alpha x_0 + sigma noise with alpha^2 + sigma^2 = 1 (flow
    models: alpha + sigma = 1), also where the scheduler keeps them at another scale. A row whose prediction
    was not computed holds another one of the same row, so that the mix of the step is right without it.
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


@dataclass(frozen=True)
class Continuation:
    """How a sample goes on after its transition: with a fresh solver, on its own grid or on a denser one."""

    num_inference_steps: int | None  # of the whole schedule that the rest is taken from; None: the same grid


class GuidanceRule:
    """What a mitigation may do; every hook is neutral here. One object serves one batch at a time.

    The step's prediction is u + s (c - u) + a (n - u): unconditional, conditional and, where a rule has one,
    an alternative prediction. s and a are pure functions of the step's timestep and the rule's state. State
    changes in `observe` only, so predictions that nobody needs are known before the model runs.
    """

    watched_space: str | None = None  # what it watches: epsilon, model_output or latents
    rehearsal: "GuidanceRule | None" = None  # denoise the same noise under this one first
    continuation: Continuation | None = None
    alternatives: list[str | None] | None = None  # which prompt each sample of the batch is guided towards
    texts: Sequence[str] = ()  # that it shows the model besides the prompts

    def check(
        self, timesteps: Sequence[float], guidance_scale: float, num_train_timesteps: int = 1000
    ) -> None:
        """Raise ValueError when this rule cannot take effect on these timesteps at this scale."""

    def check_requests(self, pipe: Any, requests: Sequence[Request]) -> None:
        """Raise ValueError when this rule cannot take effect on any request of a run, or with the model."""

    def prepare(self, pipe: Any, requests: Sequence[Request], device: torch.device) -> None:
        """Before a batch: see its prompts; embed others with the pipeline where the rule needs them."""

    def begin(self, batch_size: int, device: torch.device) -> None:
        """Forget the previous batch."""

    def rehearsed(self, timesteps: Sequence[float]) -> None:
        """After the rehearsal, before the first step."""

    def watches(self, step: DenoisingStep) -> bool:
        """Whether both predictions of every row are wanted, whatever their scale."""
        return False

    def wants_both(self, step: DenoisingStep) -> Tensor | None:
        """Rows of which both predictions are wanted, whatever their scale, (B,) bool; None: of no row."""
        return None

    def observe(self, step: DenoisingStep) -> None:
        """Look at the step's predictions."""

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        """s of each row, (B,), from what it would be without this rule."""
        return scale

    def alternative_scale(self, step: DenoisingStep) -> Tensor | None:
        """a of each row, (B,); None: no alternative is used."""
        return None

    def alternative(self, step: DenoisingStep, needed: Tensor) -> tuple[Tensor, int]:
        """n, (B, C, H, W), right in the `needed` rows ((B,) bool, CPU), and model rows spent on each."""
        raise NotImplementedError

    def stepped(self, step: DenoisingStep, latents: Tensor) -> None:
        """After the scheduler: the latents of the next step, at the scheduler's scale."""

    def leaving(self) -> Tensor:
        """Rows that go on by `continuation` from here, (B,) bool."""
        raise NotImplementedError

    def transition_timestep(self) -> Tensor | None:
        """Where each row passed its transition, (B,); None: not its affair.

        NaN where it never did, inf where a gate gave it ordinary guidance from the start.
        """
        return None
