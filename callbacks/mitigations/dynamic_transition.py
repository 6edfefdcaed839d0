"""Dynamic transition point (DTP), and with a negative scale opposite guidance up to it (OG+DTP)."""

from collections.abc import Sequence
from typing import Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt
from torch import Tensor

from callbacks.mitigations.transition import Transition
from data.ranges import FiniteFloat
from infer.denoising.hooks import DenoisingStep, both


def minimum_passed(recent: Sequence[Tensor]) -> Tensor:
    """recent[0] > recent[1] < all later ones, elementwise: a minimum, seen some steps after it."""
    before, minimum, *later = recent
    return (before > minimum) & (torch.stack(later) > minimum).all(0)


class DynamicTransition(Transition):
    """Full guidance from the step at which a sample's own difference has passed its first local minimum.

    Jain et al., CVPR 2025, dynamic transition point: d_t = RMS(eps_c - eps_u) falls when the trajectory
    leaves the attraction basin; fires at step i if d[i-2] > d[i-1] and d[i] > d[i-1]. Per sample, latched;
    the earliest step that can fire has index 2, and its own predictions are used. Both predictions of every
    step are evaluated; a timestep that a solver evaluates twice counts once. Without a fallback, a sample
    whose curve has no minimum never gets the full scale.

    The options after `watch` go beyond the paper and are off by default. They make the rule robust where it
    is known to fail: ripples fire it early, monotone curves never.

    Args:
        guidance_before: scale before the transition: 0 none, 1 conditional, negative opposite.
        watch: the difference of the noise predictions, or of the raw model outputs (v space for v-prediction,
            where the two may fire at different steps).
        smoothing: take the mean of the last so many differences as d; 1: each as it is.
        prominence: the minimum must lie below the highest d before it by this share of it, 0..1.
        patience: so many steps in a row must lie above the minimum.
        fallback_timestep: fire here at the latest.
        gate: ordinary guidance for samples whose first RMS(eps_c - eps_u) is below it; see Transition.
        gate_timestep: the first timestep of the schedules that the gate is for.
    """

    def __init__(
        self,
        guidance_before: FiniteFloat = 0.0,
        watch: Literal["epsilon", "model_output"] = "epsilon",
        smoothing: PositiveInt = 1,
        prominence: ClosedUnitInterval = 0.0,
        patience: PositiveInt = 1,
        fallback_timestep: FiniteFloat | None = None,
        gate: PositiveFloat | None = None,
        gate_timestep: FiniteFloat | None = None,
    ):
        super().__init__(guidance_before, gate, gate_timestep)
        self.watch, self.smoothing, self.prominence, self.patience = watch, smoothing, prominence, patience
        self.fallback_timestep, self.watched_space = fallback_timestep, watch

    def check(self, timesteps: Sequence[float], guidance_scale: float) -> None:
        super().check(timesteps, guidance_scale)
        needed = 1 + self.patience + self.smoothing
        if len(set(timesteps)) < needed:
            raise ValueError(
                f"a local minimum needs at least {needed} denoising steps, not {len(set(timesteps))}"
            )
        first, last = timesteps[0], timesteps[-1]
        if self.fallback_timestep is not None and not last <= self.fallback_timestep < first:
            raise ValueError(
                f"a fallback at {self.fallback_timestep:g} is outside of the schedule: its {len(timesteps)} "
                f"timesteps run from {first:g} to {last:g}"
            )

    def begin(self, batch_size: int, device: torch.device) -> None:
        super().begin(batch_size, device)
        self._window: list[Tensor] = []  # the last differences, as they are
        self._recent: list[Tensor] = []  # the last smoothed ones
        self._highest = torch.zeros(batch_size, device=device)
        self._timestep: float | None = None

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor]:
        return both(scale)

    def update(self, step: DenoisingStep) -> None:
        if step.timestep == self._timestep:
            return
        self._timestep = step.timestep
        magnitude = step.difference_rms if self.watch == "epsilon" else step.output_difference_rms
        self._window = [*self._window, magnitude][-self.smoothing :]
        if len(self._window) == self.smoothing:
            smooth = magnitude if self.smoothing == 1 else torch.stack(self._window).mean(0)
            self._recent = [*self._recent, smooth][-2 - self.patience :]
            if len(self._recent) == 2 + self.patience:
                self._highest = torch.maximum(self._highest, self._recent[0])
                prominent = self._highest - self._recent[1] >= self.prominence * self._highest
                self.fire(step, minimum_passed(self._recent) & prominent)
        if self.fallback_timestep is not None and step.timestep <= self.fallback_timestep:
            self.fire(step, torch.ones_like(self._since, dtype=torch.bool))

    def fire(self, step: DenoisingStep, where: Tensor) -> None:
        """Latched: a sample that has fired keeps its timestep."""
        self._since = torch.where(where & self._since.isnan(), step.timestep, self._since)
