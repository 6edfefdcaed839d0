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


def min_snr_weight(scheduler: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Weight of each sample's squared error, (B,): Hang et al., "Efficient Diffusion Training via Min-SNR
    Weighting Strategy", ICCV 2023, section 3.4. With SNR = alpha_t^2 / sigma_t^2 of x_t:

    epsilon: min(SNR, gamma) / SNR. v_prediction: min(SNR, gamma) / (SNR + 1).
    """
    kept = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    snr = kept / (1 - kept)
    if scheduler.config.prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)  # the same quotient, and 1 where nothing is left of the image: SNR 0


def offset_noise(noise: Tensor, strength: float, generator: Generator) -> Tensor:
    """noise + strength * N(0, 1), one number for each image and channel, (B, C, H, W).

    Guttenberg 2023, "Diffusion with Offset Noise": else a model cannot move the mean of an image.
    """
    shape = (*noise.shape[:2], 1, 1)
    return noise + strength * torch.randn(shape, generator=generator, device=noise.device)


def generator_for(device: torch.device, *key: int) -> Generator:
    """A generator that depends on the key alone (seed, rank ...), so that a resumed run draws alike."""
    state = 0
    for part in key:
        state = (state * 1_000_003 + part + 1) % (2**63 - 1)
    return Generator(device).manual_seed(state)
