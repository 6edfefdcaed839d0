"""The initial noise moved to leave the basin sooner, then a static transition (Han et al., batch-wise)."""

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from callbacks.mitigations.first_step import FirstStep, precise
from callbacks.mitigations.static_transition import StaticTransition
from data.ranges import FiniteFloat
from infer.denoising.hooks import Batch


class NoiseAdjustment(StaticTransition):
    """Move the noise down the sharpness of the guidance, then `guidance_before` while t > timestep.

    Han et al., NeurIPS 2025 (arXiv:2510.08625), batch-wise mitigation. With d(x) = eps_c(x) - eps_u(x) at the
    first step, `iterations` times: x_T <- x_T - gamma (d(x_T + rho d(x_T) / RMS(d(x_T))) - d(x_T)), per
    sample. The paper's rho is a norm: divide by sqrt(numel). Its gamma for a v-model is of raw outputs:
    divide by alpha_T. Costs four evaluations an iteration, no gradient.

    Args:
        rho: how far along the guidance the sharpness is looked at, RMS; the noise has 1.
        gamma: length of a step.
        iterations: steps.
        timestep: the transition, in timesteps of the trained schedule, 0..999.
        guidance_before: scale before it: 0 none, 1 conditional, negative opposite.
    """

    def __init__(
        self,
        rho: PositiveFloat = 0.39,
        gamma: PositiveFloat = 0.7,
        iterations: PositiveInt = 2,
        timestep: NonNegativeFloat = 900,
        guidance_before: FiniteFloat = 0.0,
    ):
        super().__init__(timestep, guidance_before)
        self.rho, self.gamma, self.iterations = rho, gamma, iterations

    def initial_noise(self, batch: Batch) -> Tensor:
        first, noise, rows = FirstStep(batch), precise(batch.noise), torch.arange(len(batch.noise))
        for _ in range(self.iterations):
            here, there = first.along(noise, rows, self.rho)
            noise = noise - self.gamma * (there - here)
        return noise.to(batch.noise.dtype)
