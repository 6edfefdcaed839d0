"""Guidance on an interval of noise levels only."""

from collections.abc import Sequence

from jsonargparse.typing import NonNegativeFloat
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.guidance.ordinary_guidance import rows_at_own_scale
from data.cli import warn_no_effect
from infer.denoising.hooks import DenoisingStep


class GuidanceInterval(Mitigation):
    """The run's guidance scale while low <= t <= high, the conditional prediction alone elsewhere.

    Kynkäänniemi et al., NeurIPS 2024 (arXiv:2404.07724), there over the noise level
    sigma. A step outside costs one evaluation. With a transition listed before it, it applies from the
    transition on.

    Args:
        low: the last timestep with guidance, in timesteps of the trained schedule.
        high: the first one.
    """

    def __init__(self, low: NonNegativeFloat = 200, high: NonNegativeFloat = 700):
        if low > high:
            raise ValueError(f"low {low:g} is above high {high:g}: exchange them")
        self.low, self.high = low, high

    def check(self, timesteps: Sequence[float], guidance_scale: float) -> None:
        inside = [self.low <= t <= self.high for t in timesteps]
        if not any(inside):
            raise ValueError(
                f"guidance between {self.low:g} and {self.high:g} would never be given: this schedule's "
                f"timesteps run from {timesteps[0]:g} to {timesteps[-1]:g}"
            )
        if all(inside):
            warn_no_effect("the guidance interval", "it holds all timesteps of this schedule")

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        return scale if self.low <= step.timestep <= self.high else rows_at_own_scale(step, scale, 1.0)
