"""What all transition points share: one guidance scale until it is passed, the full one from there on."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from infer.denoising.hooks import Continuation, DenoisingStep


class Transition(Mitigation, ABC):
    """`guidance_before` until a sample's transition timestep t*, the full scale s at and after it.

    With a ramp: s(t) = before + (s - before) min(1, (t* - t) / ramp_timesteps). Per sample; a subclass sets
    `_since`, t* of each sample, NaN while it is not known. Options beyond the paper are off by default.

    Args:
        guidance_before: scale before the transition: 0 none, 1 conditional, negative opposite.
        gate: a sample whose first d_t = RMS(eps_c - eps_u) is below this gets ordinary guidance from the
            start (its prompt is not memorized). In epsilon space, as in traces.parquet.
        gate_timestep: the first timestep of the schedules that the gate is for: d_t depends on it.
        ramp_timesteps: reach the full scale linearly within so many timesteps; 0: at once.
        steps_after: take the steps after the transition from a grid of so many (the released code: 200).
        restart_solver: forget the multistep solver's history, which mixes both regimes, at the transition.
    """

    def __init__(
        self,
        guidance_before: float = 0.0,
        gate: float | None = None,
        gate_timestep: float | None = None,
        ramp_timesteps: float = 0.0,
        steps_after: int | None = None,
        restart_solver: bool = False,
    ):
        if not math.isfinite(guidance_before):
            raise ValueError(f"guidance_before must be a number, not {guidance_before}")
        if not ramp_timesteps >= 0:
            raise ValueError(f"ramp_timesteps must be at least 0, not {ramp_timesteps}")
        if gate is not None and not gate > 0:
            raise ValueError(f"gate must be above 0 (no magnitude is below {gate}); leave it out for no gate")
        if gate is None and gate_timestep is not None:
            raise ValueError("gate_timestep is the gate's: it does nothing without one")
        if steps_after is not None and restart_solver:
            raise ValueError("steps_after starts the solver anew anyway: leave restart_solver out")
        self.guidance_before, self.ramp_timesteps = guidance_before, ramp_timesteps
        self.gate, self.gate_timestep = gate, gate_timestep
        self.steps_after, self.restart_solver = steps_after, restart_solver
        if gate is not None:
            self.watched_space = "epsilon"
        if steps_after is not None or restart_solver:
            self.continuation = Continuation(steps_after)

    def check(
        self, timesteps: Sequence[float], guidance_scale: float, num_train_timesteps: int = 1000
    ) -> None:
        if self.guidance_before == guidance_scale:
            raise ValueError(
                f"guidance_before equals guidance_scale ({guidance_scale}): the mitigation would do nothing"
            )
        if self.gate_timestep not in (None, timesteps[0]):
            raise ValueError(
                f"the gate is for schedules that start at timestep {self.gate_timestep:g}, and this one "
                f"starts at {timesteps[0]:g}: calibrate it anew"
            )
        if self.steps_after is not None and not len(timesteps) < self.steps_after <= num_train_timesteps:
            raise ValueError(
                f"steps_after is the size of a denser grid: above {len(timesteps)} and at most "
                f"{num_train_timesteps}, not {self.steps_after}"
            )

    @abstractmethod
    def begin(self, batch_size: int, device: torch.device) -> None:
        self._since = torch.full((batch_size,), math.nan, device=device)
        self._passed_at = self._since.clone()

    def watches(self, step: DenoisingStep) -> bool:
        return self.gate is not None and step.index == 0

    def look(self, step: DenoisingStep) -> None:
        """Update `_since` from the step's predictions."""

    def observe(self, step: DenoisingStep) -> None:
        if self.gate is not None and step.index == 0:
            below = (step.difference_rms < self.gate).to(self._since.device)
            self._since = self._since.masked_fill(below, math.inf)
        self.look(step)
        passed_now = (self._since >= step.timestep) & self._passed_at.isnan()
        here = self._since.masked_fill(self._since.isfinite(), step.timestep)
        self._passed_at = torch.where(passed_now, here, self._passed_at)  # no device sync

    def beside(self, scale: Tensor) -> Tensor:
        """On the device of `_since`; a copy to the CPU must have arrived before it is read."""
        device = self._since.device
        return scale.to(device, non_blocking=device.type != "cpu")

    def waiting(self, step: DenoisingStep) -> Tensor:
        """Samples before their transition, (B,) bool."""
        return ~(self._since >= step.timestep)

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        waiting, scale = self.waiting(step), self.beside(scale)
        before = torch.full_like(scale, self.guidance_before)
        if self.ramp_timesteps:
            progress = ((self._since - step.timestep) / self.ramp_timesteps).clamp(max=1)
            scale = torch.where(progress < 1, before + progress * (scale - before), scale)
        return torch.where(waiting, before, scale)

    def leaving(self) -> Tensor:
        return self._passed_at.isfinite()  # whom the gate let through stays

    def transition_timestep(self) -> Tensor:
        return self._passed_at
