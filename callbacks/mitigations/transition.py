"""What all transition points share: one guidance scale until it is passed, the full one from there on."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jsonargparse.typing import PositiveFloat
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from data.cli import warn_no_effect
from data.ranges import FiniteFloat
from infer.denoising.hooks import DenoisingStep, both


class Transition(Mitigation, ABC):
    """`guidance_before` until a sample's transition timestep t*, the full scale s at and after it.

    Per sample; a subclass sets `_since`, t* of each sample, NaN while it is not known. Options beyond the
    paper are off by default.

    Args:
        guidance_before: scale before the transition: 0 none, 1 conditional, negative opposite.
        gate: a sample whose first d_t = RMS(eps_c - eps_u) is below this gets ordinary guidance from then on
            (its prompt is not memorized). In epsilon space, as in traces.parquet. At zero terminal SNR d_t is
            0 at the first step whatever the prompt: the next one counts.
        gate_timestep: the first timestep of the schedules that the gate is for: d_t depends on it.
    """

    calibrated = ("timestep", "gate")  # those of the two that a subclass takes

    def __init__(
        self,
        guidance_before: FiniteFloat = 0.0,
        gate: PositiveFloat | None = None,
        gate_timestep: FiniteFloat | None = None,
    ):
        if gate is None and gate_timestep is not None:
            warn_no_effect("gate_timestep", "it is the gate's, and there is no gate")
        self.guidance_before, self.gate, self.gate_timestep = guidance_before, gate, gate_timestep
        if gate is not None:
            self.watched_space = "epsilon"

    def check(self, timesteps: Sequence[float], guidance_scale: float) -> None:
        if self.guidance_before == guidance_scale:
            raise ValueError(
                f"guidance_before equals guidance_scale ({guidance_scale}): the mitigation would do nothing"
            )
        if self.gate_timestep not in (None, timesteps[0]):
            raise ValueError(
                f"the gate is for schedules that start at timestep {self.gate_timestep:g}, and this one "
                f"starts at {timesteps[0]:g}: calibrate it again"
            )

    @abstractmethod
    def begin(self, batch_size: int, device: torch.device) -> None:
        self._since = torch.full((batch_size,), math.nan, device=device)
        self._passed_at = self._since.clone()
        self._gate_ahead = self.gate is not None

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor] | None:
        return both(scale) if self._gate_ahead and step.alpha != 0 else None

    def update(self, step: DenoisingStep) -> None:
        """Set `_since` of samples whose transition the step's predictions show."""

    def observe(self, step: DenoisingStep) -> None:
        if self._gate_ahead and step.alpha != 0:
            self._gate_ahead = False
            below = (step.difference_rms < self.gate).to(self._since.device)
            self._since = self._since.masked_fill(below, math.inf)
        self.update(step)
        passed_now = (self._since >= step.timestep) & self._passed_at.isnan()
        passed_at = self._since.masked_fill(self._since.isfinite(), step.timestep)
        self._passed_at = torch.where(passed_now, passed_at, self._passed_at)  # no device sync

    def waiting(self, step: DenoisingStep) -> Tensor:
        """Samples before their transition, (B,) bool."""
        return ~(self._since >= step.timestep)

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        device = self._since.device  # a copy to the CPU must have arrived before it is read
        waiting, scale = self.waiting(step), scale.to(device, non_blocking=device.type != "cpu")
        return torch.where(waiting, self.guidance_before, scale)

    def transition_timestep(self) -> Tensor:
        return self._passed_at
