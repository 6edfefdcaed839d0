"""DSM: how much the conditional prediction changes between the first steps of a run."""

import numpy as np
import torch
from torch import Tensor

from infer.denoising.hooks import DenoisingStep, GuidanceRule, both, rms

STEPS = 3  # predictions that are compared


class EarlyChange(GuidanceRule):
    """Changes nothing: keeps the noise predictions of the prompts at the first three timesteps.

    A timestep that a solver takes twice counts once, and steps without signal (alpha 0) do not count: there
    the model predicts the noise that it is given, whatever the prompt.
    """

    def begin(self, batch_size: int, device: torch.device) -> None:
        self.predictions: list[Tensor] = []
        self.timesteps: list[float] = []

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor]:
        return both(scale)

    def observe(self, step: DenoisingStep) -> None:
        if step.alpha > 0 and step.timestep not in self.timesteps and len(self.timesteps) < STEPS:
            self.timesteps.append(step.timestep)
            self.predictions.append(step.epsilon(step.conditional))

    def scores(self) -> dict[str, np.ndarray]:
        """DSM_ij = mean square of eps_c(x_j, t_j) - eps_c(x_i, t_i), (B,), along the guided trajectory.

        The squared L2 norm over the number of entries. From the ICML 2026 submission on a decoupled Hessian
        metric, whose DSM_01 and DSM_12 need neither gradients nor further evaluations. NaN for a schedule
        without three distinct timesteps.
        """
        first, second, third = (*self.predictions, None, None, None)[:STEPS]
        return {"dsm_01": mean_square(first, second), "dsm_12": mean_square(second, third)}


def mean_square(one: Tensor | None, other: Tensor | None) -> np.ndarray | float:
    """Of their difference, (B,); NaN where one is missing."""
    if one is None or other is None:
        return np.nan
    return rms(other - one).square().cpu().numpy()
