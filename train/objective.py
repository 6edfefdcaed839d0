"""The diffusion objective: what the UNet must predict, and the noise it learns from."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Generator, Tensor


def training_target(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
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


def offset_noise(noise: Tensor, strength: float, offset: Tensor) -> Tensor:
    """noise + strength * offset, one number for each image and channel: offset is (B, C, 1, 1), from N(0, 1).

    Guttenberg 2023, "Diffusion with Offset Noise": else a model cannot move the mean of an image.
    """
    return noise + strength * offset


def epsilon_rms(scheduler: DDPMScheduler, difference: Tensor, timesteps: Tensor) -> Tensor:
    """Magnitude of a difference of two predictions of one x_t in epsilon space, as RMS per sample, (B,).

    eps_c - eps_u, or for v-prediction alpha_t (v_c - v_u). A norm over an image's latents, as Wen et al. give
    it (ICLR 2024), is this times sqrt(C H W).
    """
    rms = difference.float().flatten(1).square().mean(1).sqrt()
    if scheduler.config.prediction_type == "v_prediction":
        rms = rms * scheduler.alphas_cumprod.to(rms.device)[timesteps].float().sqrt()
    return rms


class SharedDraws:
    """Random numbers of one step's global batch, of which each rank has its rows.

    Row n of W processes' batches is drawn alike whatever W is, and belongs to rank n mod W, as
    `train.dataset.draws.PlannedDraws` deals the images: W processes see what one with a batch W times as
    large sees.
    """

    def __init__(self, device: torch.device, rows: int, rank: int, world_size: int, *key: int):
        self.device, self.total, self.rank, self.world_size = device, rows * world_size, rank, world_size
        self.generator = generator_for(device, *key)

    def own(self, draw: Callable[..., Tensor], *args: Any) -> Tensor:
        """This rank's rows of what a function of torch draws."""
        return draw(*args, generator=self.generator, device=self.device)[self.rank :: self.world_size]

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1), (rows, *shape)."""
        return self.own(torch.randn, (self.total, *shape))

    def uniform(self) -> Tensor:
        """[0, 1), (rows,)."""
        return self.own(torch.rand, self.total)

    def integers(self, end: int) -> Tensor:
        """0 to end - 1, (rows,)."""
        return self.own(torch.randint, 0, end, (self.total,))


def generator_for(device: torch.device, *key: int) -> Generator:
    """A generator that depends on the key alone (seed, step ...), so that a resumed run draws alike."""
    state = 0
    for part in key:
        state = (state * 1_000_003 + part + 1) % (2**63 - 1)
    return Generator(device).manual_seed(state)
