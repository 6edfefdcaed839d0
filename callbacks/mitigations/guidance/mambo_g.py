"""MaMBo-G: less guidance where the prompt changes the prediction much, a soft gate per sample and step."""

import torch
from jsonargparse.typing import NonNegativeFloat
from torch import Tensor

from callbacks.mitigations.guidance.ordinary_guidance import OrdinaryGuidance, rows_at_own_scale
from infer.denoising.hooks import DenoisingStep, rms


class MaMBoG(OrdinaryGuidance):
    """The scale s' = 1 + (s - 1) exp(-alpha ||c - u|| / ||u||), of each sample at each step.

    arXiv:2508.03442, on the model's output (noise or v). The numerator is the signal of Wen et al.: memorized
    prompts get little guidance while it is large, ordinary ones more. Two evaluations a step. (Diffusers'
    MagnitudeAwareGuidance is the same formula; up to 0.42 it fails on images.)

    Args:
        alpha: how fast the scale falls; 0 is ordinary guidance.
    """

    def __init__(self, alpha: NonNegativeFloat = 8.0):
        self.alpha = alpha

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        if step.conditional is None:  # the model did not run yet
            return scale
        ratio = step.output_difference_rms / rms(step.unconditional).clamp(min=1e-12)
        reduced = 1 + (step.guidance_scale - 1) * torch.exp(-self.alpha * ratio)
        return rows_at_own_scale(step, scale.to(ratio.device), reduced)
