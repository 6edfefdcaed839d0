"""The denoiser that a UNet is at any noise level, between the scheduler's timesteps too."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Denoiser:
    """D_sigma(y) = E[x_0 | y], the clean latents that the UNet expects behind y = x_0 + sigma noise.

    The UNet is given x_t = alpha y at the timestep whose sigma / alpha ratio this is, alpha = 1 / sqrt(1 +
    sigma^2): D = y - sigma eps for models that predict noise, and alpha (x_t - sigma v) for v-prediction
    (Salimans & Ho 2022), where sigma is the ratio. Timesteps between two of the schedule's are interpolated.

    Args:
        unet: called as `unet(x_t, t, encoder_hidden_states=..., return_dict=False)[0]`.
        scheduler: whose cumulated alphas and prediction type count; its timesteps do not.
    """

    def __init__(self, unet: Callable, scheduler: Any):
        self.unet, self.prediction_type = unet, scheduler.config.prediction_type
        kept = scheduler.alphas_cumprod.double().cpu().numpy()
        kept = kept[kept > 1e-6]  # at zero terminal SNR the last ratio is infinite
        self.ratios = np.sqrt((1 - kept) / kept)

    def levels(self, count: int) -> list[float]:
        """So many sigmas of the whole schedule, evenly spaced in their logarithm, the lowest first."""
        return np.geomspace(self.ratios[0], self.ratios[-1], count).tolist()

    def timestep(self, sigma: Tensor) -> Tensor:
        timesteps = np.interp(sigma.double().cpu().numpy(), self.ratios, np.arange(len(self.ratios)))
        return torch.tensor(timesteps, dtype=torch.float32)

    @torch.no_grad()
    def __call__(self, y: Tensor, sigma: Tensor, embedding: Tensor) -> Tensor:
        """D_sigma(y), (B, C, H, W) in float32, of y in any precision; `sigma` is (B,)."""
        ratio = sigma.to(y.device, torch.float32).view(-1, 1, 1, 1)
        alpha = (1 + ratio**2).rsqrt()
        given, t = (alpha * y).to(embedding.dtype), self.timestep(sigma).to(y.device)
        output = self.unet(given, t, encoder_hidden_states=embedding, return_dict=False)[0].float()
        if self.prediction_type == "v_prediction":
            return alpha * (alpha * y - ratio * output)
        return y - ratio * output
