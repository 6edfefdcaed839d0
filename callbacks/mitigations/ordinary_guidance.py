"""What mitigations share that stand in for u + s (c - u) itself: they act where the run's own scale is."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from infer.denoising.guidance import onto
from infer.denoising.hooks import DenoisingStep


class OrdinaryGuidance(Mitigation, ABC):
    """Replaces u + s (c - u) in the rows that have the run's own scale.

    Listed with a transition, it leaves rows alone until they have passed it. Both predictions of its rows are
    evaluated.
    """

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor]:
        own = scale == step.guidance_scale
        return (scale != 1) | own, (scale != 0) | own

    def combine(self, step: DenoisingStep, prediction: Tensor) -> Tensor:
        own = (step.scale == step.guidance_scale).cpu()
        if not own.any():
            return prediction
        index = onto(own.nonzero()[:, 0], prediction.device)
        return prediction.index_copy(0, index, self.guided(step, index).to(prediction.dtype))

    @abstractmethod
    def guided(self, step: DenoisingStep, index: Tensor) -> Tensor:
        """The guided prediction of these rows, (len(index), C, H, W)."""


def per_sample(x: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to multiply `like` by."""
    return x.view(-1, *[1] * (like.ndim - 1))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample, (B,), in single precision."""
    return (a.float() * b.float()).flatten(1).sum(1)


def rows_at_own_scale(step: DenoisingStep, scale: Tensor, other: float) -> Tensor:
    """`other` in place of the run's own scale; rows whose scale another mitigation has set keep it."""
    return torch.where(scale == step.guidance_scale, torch.full_like(scale, other), scale)
