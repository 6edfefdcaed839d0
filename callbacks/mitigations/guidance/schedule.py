"""A guidance scale that follows a list of (timestep, scale)."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.guidance.ordinary_guidance import rows_at_own_scale
from infer.denoising.hooks import DenoisingStep


class GuidanceSchedule(Mitigation):
    """The guidance scale of each timestep from a list, the same for all samples.

    From a listed timestep on its scale applies, until the next one; before the first, that of the run.
    `linear` draws straight lines between the points instead, and is constant beyond the ends. Steps at scale
    0 or 1 cost one evaluation. With a transition listed before it, it applies from there on.

    Args:
        points: [timestep, scale] pairs, in any order; timesteps of the trained schedule.
        linear: interpolate between the points.
    """

    def __init__(self, points: list[tuple[float, float]], linear: bool = False):
        if not points or len({timestep for timestep, _ in points}) < len(points):
            raise ValueError(f"points: give [timestep, scale] pairs, each timestep once, not {points}")
        self.points = sorted(([float(t), float(s)] for t, s in points), reverse=True)
        self.linear = linear

    def check(self, timesteps: Sequence[float], guidance_scale: float) -> None:
        if all(self.scale_at(t, guidance_scale) == guidance_scale for t in timesteps):
            raise ValueError(
                f"the schedule {self.points} gives the run's own scale ({guidance_scale:g}) at each timestep "
                f"from {timesteps[0]:g} to {timesteps[-1]:g}: the mitigation would do nothing"
            )

    def scale_at(self, timestep: float, before: float) -> float:
        """The scale at a timestep; `before` applies above the first point of a list of steps."""
        if self.linear:
            timesteps, scales = zip(*reversed(self.points), strict=True)
            return float(np.interp(timestep, timesteps, scales))
        passed = [scale for t, scale in self.points if timestep <= t]
        return passed[-1] if passed else before

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        return rows_at_own_scale(step, scale, self.scale_at(step.timestep, step.guidance_scale))
