"""Curves of the watched difference over a run, without its images."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from infer.denoising.hooks import DenoisingStep, GuidanceRule, both

SPACES = {"epsilon": "noise prediction", "model_output": "model output"}  # whose differences are watched
Rules = dict[str, GuidanceRule]  # by the space that they watch


class Watch(GuidanceRule):
    """Changes nothing: keeps each step's difference in both spaces, and when each of `rules` would fire."""

    def __init__(self, rules: Rules | None = None):
        self.rules = rules or {}

    def begin(self, batch_size: int, device: torch.device) -> None:
        self.differences: dict[str, list[Tensor]] = {space: [] for space in SPACES}
        for rule in self.rules.values():
            rule.begin(batch_size, device)

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor]:
        return both(scale)

    def observe(self, step: DenoisingStep) -> None:
        self.differences["epsilon"].append(step.difference_rms)
        self.differences["model_output"].append(step.output_difference_rms)
        for rule in self.rules.values():
            rule.observe(step)

    def curves(self) -> dict[str, np.ndarray]:
        return {space: torch.stack(steps, 1).cpu().numpy() for space, steps in self.differences.items()}

    def fired(self) -> dict[str, np.ndarray]:
        return {space: rule.transition_timestep().cpu().numpy() for space, rule in self.rules.items()}


def joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The rows of all parts, by name."""
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
