"""The diffusion objective: what the UNet is asked to predict, and the noise it learns from."""

import torch
from diffusers import DDPMScheduler
from torch import Generator, Tensor


def target(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the model must predict for x_t = alpha_t x_0 + sigma_t noise, (B, C, H, W).

    epsilon: noise. v_prediction: alpha_t noise - sigma_t x_0 (Salimans & Ho 2022, eq. 9 f.). The kind is the
    scheduler's `prediction_type`. Raises ValueError for `sample` and unknown kinds.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(
        f"prediction_type {kind!r} is not supported: the model must predict epsilon or v_prediction"
    )


def generator_for(device: torch.device, *key: int) -> Generator:
    """A generator that depends on the key alone (seed, rank ...), so that a resumed run draws alike."""
    state = 0
    for part in key:
        state = (state * 1_000_003 + part + 1) % (2**63 - 1)
    return Generator(device).manual_seed(state)
