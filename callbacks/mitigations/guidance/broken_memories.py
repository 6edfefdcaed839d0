"""Broken Memories: latents are kept within the bounds that ordinary prompts' latents stay within."""

import torch
from torch import Tensor

from callbacks.mitigations.guidance.latent_bounds import LatentBounds, clean_image, output_of, resized
from callbacks.mitigations.guidance.ordinary_guidance import per_sample
from infer.denoising.hooks import DenoisingStep, rms


class BrokenMemoriesMild(LatentBounds):
    """The predicted image gets the norm of ordinary prompts' where its own is out of bounds.

    Huang et al., KDD 2026 (arXiv:2605.22050), milder form. Ordinary prompts give mean mu and deviation s of
    ||x_0|| at each step, under the run's own solver and scale; outside of mu +- gamma s, x_0 is rescaled to
    norm mu before the solver's step. Norms are RMS per sample, so that they do not depend on the resolution.
    No evaluations in a run; before its first batch each process denoises the ordinary prompts (not in `nfe`).

    The published gamma is not known to us: 3 is our choice, and so is that x_0 inside of the region stays;
    gamma 0 rescales it at every step.
    """

    def combine(self, step: DenoisingStep, prediction: Tensor) -> Tensor:
        bounds, image = self._now["image"], clean_image(step, prediction)
        size = rms(image)
        leaves = size != bounds.clamp(step.index, size, self.gamma)
        changed = output_of(step, resized(image, bounds.mean[step.index].expand_as(size)))
        return torch.where(per_sample(leaves, image), changed.to(prediction.dtype), prediction)


class BrokenMemoriesStrong(LatentBounds):
    """The solver's steps, and the latents after them, keep within ordinary prompts' bounds.

    Huang et al., KDD 2026 (arXiv:2605.22050), stronger form. Ordinary prompts give mean mu and deviation s of
    ||x_i - x_i+1|| and of ||x_i|| at each step, under the run's own solver and scale; both norms are
    clamped into mu +- gamma s, the update's first. Norms are RMS per sample. No evaluations in a run; before
    its first batch each process denoises the ordinary prompts (not in `nfe`).

    The published gamma is not known to us: 3 is our choice.
    """

    def after_step(self, step: DenoisingStep, before: Tensor, after: Tensor) -> Tensor:
        update = after - before
        update = resized(update, self._now["update"].clamp(step.index, rms(update), self.gamma))
        moved = before + update
        return resized(moved, self._now["latents"].clamp(step.index, rms(moved), self.gamma))
