"""Static transition point (STP), and with a negative scale opposite guidance up to it (OG+STP)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from callbacks.mitigation import Mitigation, check_guidance_before, check_timestep
from infer.denoise import DenoisingStep


class StaticTransition(Mitigation):
    """`guidance_before` while t > timestep, the full guidance scale when t <= timestep.

    Jain et al., CVPR 2025, static transition point: eps = eps_u + s(t) (eps_c - eps_u). Opposite guidance is
    `guidance_before < 0` (the paper: -2 until 650 on SD 2.1). No prediction is watched: a step at scale 0
    costs one UNet evaluation.

    Args:
        timestep: the transition, in timesteps of the trained schedule, 0..999.
        guidance_before: scale before it: 0 none, 1 conditional, negative opposite.
    """

    def __init__(self, timestep: int = 500, guidance_before: float = 0.0):
        check_timestep(timestep)
        self.timestep, self.guidance_before = timestep, guidance_before

    def check(self, timesteps: Sequence[int], guidance_scale: float) -> None:
        check_guidance_before(self.guidance_before, guidance_scale)
        if timesteps[0] <= self.timestep:
            raise ValueError(
                f"transition timestep {self.timestep} never holds guidance back: "
                f"the first of {len(timesteps)} timesteps is {timesteps[0]}"
            )

    def begin(self, batch_size: int, device: torch.device) -> None:
        self._transition = torch.full((batch_size,), torch.nan)

    def observe(self, step: DenoisingStep) -> None:
        if step.timestep <= self.timestep and (
            step.index == 0 or step.timesteps[step.index - 1] > self.timestep
        ):
            self._transition.fill_(step.timestep)

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        return torch.full_like(scale, self.guidance_before) if step.timestep > self.timestep else scale

    def transition_timestep(self) -> Tensor:
        return self._transition
