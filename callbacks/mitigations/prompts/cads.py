"""Condition-annealed sampling: noise on the prompt's embedding that fades along the run."""

from typing import Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat
from torch import Generator, Tensor

from callbacks.mitigations.base import Mitigation
from infer.denoising.guidance import onto
from infer.denoising.hooks import Batch, DenoisingStep


def annealed(embedding: Tensor, noise: Tensor, gamma: float, noise_scale: float, mix: float) -> Tensor:
    """Noisy embedding of each sample, (B, tokens, width), in single precision.

    y' = sqrt(gamma) y + s sqrt(1 - gamma) n; y'' is y' with y's mean and standard deviation, both over all
    entries of a sample; mix y'' + (1 - mix) y'.
    """
    y = embedding.float()
    noisy = gamma**0.5 * y + noise_scale * (1 - gamma) ** 0.5 * noise
    (mean, std), (noisy_mean, noisy_std) = (
        (x.mean((1, 2), keepdim=True), x.std((1, 2), keepdim=True)) for x in (y, noisy)
    )
    rescaled = (noisy - noisy_mean) / noisy_std.clamp(min=1e-12) * std + mean
    return mix * rescaled + (1 - mix) * noisy


class CADS(Mitigation):
    """The conditional embedding is noise first, and becomes the prompt's between two timesteps.

    Sadat et al., ICLR 2024 (arXiv:2310.17347), Eqs. 2-4: gamma(t) is 0 for t >= tau2, 1 for t <= tau1,
    (tau2 - t) / (tau2 - tau1) between; the embedding of step t is `annealed` with fresh noise of the sample's
    own seed. The unconditional embedding stays. Costs no evaluations.

    Args:
        clean_timestep: tau1: from here on the embedding is the prompt's.
        noise_timestep: tau2: before it the embedding is noise.
        noise_scale: s.
        mix: psi, the share of the embedding that is brought back to the prompt's mean and deviation.
        noise: gaussian as published; uniform on [0, 1) as in the released code of Jain et al. (CVPR 2025).
    """

    def __init__(
        self,
        clean_timestep: NonNegativeFloat = 600,
        noise_timestep: NonNegativeFloat = 900,
        noise_scale: NonNegativeFloat = 0.25,
        mix: ClosedUnitInterval = 1.0,
        noise: Literal["gaussian", "uniform"] = "gaussian",
    ):
        if clean_timestep >= noise_timestep:
            raise ValueError(
                f"clean_timestep {clean_timestep:g} must be below noise_timestep {noise_timestep:g}"
            )
        self.clean_timestep, self.noise_timestep = clean_timestep, noise_timestep
        self.noise_scale, self.mix, self.noise = noise_scale, mix, noise

    def check(self, timesteps: list[float], guidance_scale: float) -> None:
        if timesteps[0] <= self.clean_timestep:
            raise ValueError(
                f"the embedding is the prompt's from timestep {self.clean_timestep:g} on, and this schedule "
                f"starts at {timesteps[0]:g}: the mitigation would do nothing"
            )

    def forget(self) -> None:
        self._generators = []

    def before_denoising(self, batch: Batch) -> None:
        self._generators: list[Generator] = batch.own_generators("cads")

    def gamma(self, timestep: float) -> float:
        """1: the prompt's embedding; 0: noise."""
        share = (self.noise_timestep - timestep) / (self.noise_timestep - self.clean_timestep)
        return min(max(share, 0.0), 1.0)

    def step_embedding(self, step: DenoisingStep, embedding: Tensor) -> Tensor:
        gamma = self.gamma(step.timestep)
        if gamma == 1:
            return embedding
        draw = torch.randn if self.noise == "gaussian" else torch.rand
        noise = torch.stack([draw(embedding.shape[1:], generator=own) for own in self._generators])
        noisy = annealed(embedding, onto(noise, embedding.device), gamma, self.noise_scale, self.mix)
        return noisy.to(embedding.dtype)
