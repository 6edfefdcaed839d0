"""Opposite guidance with the transition of a first pass, as the paper's released code means it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from callbacks.mitigations.transition import Transition
from infer.denoising.hooks import Batch, DenoisingStep, GuidanceRule


def chosen_minimum(curve: Sequence[float], otherwise: int = 5) -> int:
    """Index of the first local minimum c[i-1] > c[i] < c[i+1]; the second if it is 1; `otherwise` if none."""
    minima = [i for i in range(1, len(curve) - 1) if curve[i - 1] > curve[i] < curve[i + 1]]
    if len(minima) > 1 and minima[0] == 1:
        return minima[1]
    return minima[0] if minima else otherwise


class FirstPass(GuidanceRule):
    """One scale throughout; keeps how far each step turns the latents: 1 - cos(x_i, x_i+1)."""

    def __init__(self, guidance_scale: float):
        self.full_scale = guidance_scale
        self.latents: Tensor | None = None
        self.turns: list[Tensor] = []

    def turn(self, latents: Tensor) -> None:
        """The latents may be at any scale: a cosine does not change with it."""
        before, self.latents = self.latents, latents.flatten(1).float()
        if before is not None:
            self.turns.append(1 - F.cosine_similarity(before, self.latents))

    def observe(self, step: DenoisingStep) -> None:
        self.turn(step.latents)

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        return torch.full_like(scale, self.full_scale)


class TwoPassTransition(Transition):
    """Full guidance from the step that a first pass, at the opposite scale throughout, picks for each sample.

    Jain et al., CVPR 2025, opposite guidance as their released code means it. First pass: the whole schedule
    from the same noise at `guidance_before`; curve 1 - cos(x_i, x_i+1) of successive latents; its first local
    minimum, the second if the first has index 1, index 5 if there is none. Second pass: `guidance_before`
    before that index, the full scale from it on. The evaluations of the first pass are counted, too. (The
    released code also takes the steps after the transition from a grid of 200.)

    Args:
        guidance_before: scale of the first pass, and of the second before the transition.
    """

    watched_space = "latents"
    combines = False  # the first pass is this rule's alone

    def __init__(self, guidance_before: float = -7.5):
        super().__init__(guidance_before)

    def check(self, timesteps: Sequence[float], guidance_scale: float) -> None:
        super().check(timesteps, guidance_scale)
        if len(set(timesteps)) < len(timesteps):
            raise ValueError(
                "the two-pass transition needs a scheduler with each timestep once, such as ddim or dpm"
            )
        if len(timesteps) < 6:
            raise ValueError(f"the two-pass transition needs at least 6 steps, not {len(timesteps)}")

    def begin(self, batch_size: int, device: torch.device) -> None:
        super().begin(batch_size, torch.device("cpu"))

    def before_denoising(self, batch: Batch) -> None:
        first = FirstPass(self.guidance_before)
        first.turn(batch.denoise([first]).latents)
        timesteps, curves = batch.scheduler.timesteps.tolist(), torch.stack(first.turns, 1).tolist()
        self._since = torch.tensor([float(timesteps[chosen_minimum(curve)]) for curve in curves])
