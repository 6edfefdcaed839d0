"""Static transition point (STP), and with a negative scale opposite guidance up to it (OG+STP)."""

from collections.abc import Sequence

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat

from callbacks.mitigations.transition import Transition
from data.ranges import FiniteFloat


class StaticTransition(Transition):
    """`guidance_before` while t > timestep, the full guidance scale when t <= timestep.

    Jain et al., CVPR 2025, static transition point: eps = eps_u + s(t) (eps_c - eps_u). Opposite guidance is
    `guidance_before < 0` (the paper: -2 until 650 on SD 2.1). No prediction is watched: a step at scale 0
    costs one UNet evaluation.

    Args:
        timestep: the transition, in timesteps of the trained schedule, 0..999.
        guidance_before: scale before it: 0 none, 1 conditional, negative opposite.
        gate: ordinary guidance for samples whose first RMS(eps_c - eps_u) is below it; see Transition.
        gate_timestep: the first timestep of the schedules that the gate is for.
    """

    def __init__(
        self,
        timestep: NonNegativeFloat = 500,
        guidance_before: FiniteFloat = 0.0,
        gate: PositiveFloat | None = None,
        gate_timestep: FiniteFloat | None = None,
    ):
        super().__init__(guidance_before, gate, gate_timestep)
        self.timestep = timestep

    def check(self, timesteps: Sequence[float], guidance_scale: float) -> None:
        super().check(timesteps, guidance_scale)
        first, last = timesteps[0], timesteps[-1]
        if not last <= self.timestep < first:
            what = "never hold guidance back" if self.timestep >= first else "never give guidance"
            raise ValueError(
                f"a transition at {self.timestep:g} would {what}: the {len(timesteps)} timesteps of this "
                f"schedule run from {first:g} to {last:g}"
            )

    def begin(self, batch_size: int, device: torch.device) -> None:
        super().begin(batch_size, torch.device("cpu"))  # decisions wait for no device
        self._since.fill_(self.timestep)
