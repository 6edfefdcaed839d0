"""What mitigations share that stand in for u + s (c - u) itself: they act where the run's own scale is."""

from typing import Any

import torch
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from infer.denoising.guidance import onto
from infer.denoising.hooks import DenoisingStep


class OrdinaryGuidance(Mitigation):
    """Replaces u + s (c - u) in the rows that have the run's own scale, by its `combine`.

    Listed with a transition, it leaves rows alone until they have passed it. Both predictions of its rows are
    evaluated.
    """

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor]:
        own = scale == step.guidance_scale
        return (scale != 1) | own, (scale != 0) | own

    def own_rows(self, step: DenoisingStep) -> Tensor:
        """Indices of the rows that it guides, on the CPU."""
        return (step.scale == step.guidance_scale).cpu().nonzero()[:, 0]


def predict(unet: Any, latents: Tensor, step: DenoisingStep, embedding: Tensor) -> Tensor:
    """The model's output for latents of this step with an embedding of each."""
    clock = onto(torch.tensor(step.timestep), latents.device)
    return unet(latents, clock, encoder_hidden_states=embedding, return_dict=False)[0]


def rows_at_own_scale(step: DenoisingStep, scale: Tensor, other: float | Tensor) -> Tensor:
    """`other` in place of the run's own scale; rows whose scale another mitigation has set keep theirs."""
    return torch.where(scale == step.guidance_scale, other, scale)


def per_sample(x: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to multiply `like` by."""
    return x.view(-1, *[1] * (like.ndim - 1))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample, (B,), in single precision."""
    return (a.float() * b.float()).flatten(1).sum(1)
