"""Dynamic transition point (DTP), and with a negative scale opposite guidance up to it (OG+DTP)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from callbacks.mitigation import Mitigation, check_guidance_before
from infer.denoise import DenoisingStep


def is_local_minimum(before: Tensor, middle: Tensor, now: Tensor) -> Tensor:
    """d[i-2] > d[i-1] and d[i] > d[i-1], elementwise: the minimum is seen one step after it."""
    return (before > middle) & (now > middle)


class DynamicTransition(Mitigation):
    """Full guidance from the step at which a sample's own difference has passed its first local minimum.

    Jain et al., CVPR 2025, dynamic transition point: d_t = RMS(eps_c - eps_u) falls when the trajectory
    leaves the attraction basin. Per sample, latched; the earliest step that can fire has index 2. Both
    predictions of every step are evaluated. A sample whose curve has no minimum never gets the full scale.

    Args:
        guidance_before: scale before the transition: 0 none, 1 conditional, negative opposite.
        watch: the difference of the noise predictions, or of the raw model outputs (v space for v-prediction,
            where the two may fire at different steps).
    """

    def __init__(self, guidance_before: float = 0.0, watch: Literal["epsilon", "model_output"] = "epsilon"):
        self.guidance_before, self.watch = guidance_before, watch

    def check(self, timesteps: Sequence[int], guidance_scale: float) -> None:
        check_guidance_before(self.guidance_before, guidance_scale)
        if len(timesteps) < 3:
            raise ValueError(f"a local minimum needs at least 3 denoising steps, not {len(timesteps)}")

    def begin(self, batch_size: int, device: torch.device) -> None:
        self._fired = torch.zeros(batch_size, dtype=torch.bool, device=device)
        self._transition = torch.full((batch_size,), torch.nan, device=device)
        self._history: list[Tensor] = []

    def watches(self, step: DenoisingStep) -> bool:
        return True

    def observe(self, step: DenoisingStep) -> None:
        magnitude = step.difference_rms if self.watch == "epsilon" else step.output_difference_rms
        self._history = [*self._history[-2:], magnitude]
        if len(self._history) == 3:
            fires = is_local_minimum(*self._history) & ~self._fired
            self._transition.masked_fill_(fires, step.timestep)  # no device sync
            self._fired |= fires

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        scale = scale.to(self._fired.device)
        return torch.where(self._fired, scale, torch.full_like(scale, self.guidance_before))

    def transition_timestep(self) -> Tensor:
        return self._transition
