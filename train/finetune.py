"""Finetune a Stable Diffusion pipeline's UNet; objective, scale and text length come from the pipeline."""

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from data.pipeline import load_pipeline
from train.objective import generator_for, min_snr_weight, offset_noise, target
from train.schedule import warmup_constant, warmup_cosine


class Finetune(pl.LightningModule):
    """Train the UNet (`trained`) on noised latents; the frozen parts stay out of checkpoints.

    Args:
        pipeline: diffusers StableDiffusionPipeline folder or Hub id.
        revision: of the Hub repository.
        lr: learning rate after the warm-up.
        warmup_steps: linear warm-up.
        decay: constant rate, or cosine to zero at trainer.max_steps.
        betas: of AdamW.
        weight_decay: of AdamW.
        caption_dropout: share of the captions replaced with the empty prompt.
        gradient_checkpointing: trade time for memory.
        channels_last: memory layout of the UNet.
        seed: of noise and timesteps.
        min_snr_gamma: weight timesteps by their signal-to-noise ratio, at most this (Hang et al. 2023: 5);
            null: all alike.
        noise_offset: strength of an offset common to an image's channel, added to the noise (usually 0.1).
    """

    def __init__(
        self,
        pipeline: str,
        revision: str | None = None,
        lr: float = 1e-5,
        warmup_steps: int = 0,
        decay: Literal["constant", "cosine"] = "constant",
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        caption_dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        seed: int = 0,
        min_snr_gamma: float | None = None,
        noise_offset: float = 0.0,
    ):
        if min_snr_gamma is not None and not 0 < min_snr_gamma < math.inf:
            raise ValueError(f"min_snr_gamma must be above 0, not {min_snr_gamma}; null weights all alike")
        if not noise_offset >= 0:
            raise ValueError(f"noise_offset must be at least 0, not {noise_offset}")
        super().__init__()
        self.source, self.revision = pipeline, revision
        self.lr, self.warmup_steps, self.decay = lr, warmup_steps, decay
        self.betas, self.weight_decay, self.caption_dropout = betas, weight_decay, caption_dropout
        self.gradient_checkpointing, self.channels_last = gradient_checkpointing, channels_last
        self.seed, self.min_snr_gamma, self.noise_offset = seed, min_snr_gamma, noise_offset

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, loaded when first needed. No nn.Module, so its frozen parts do not register here."""
        return self.load_pipeline()

    def load_pipeline(self) -> Any:
        return load_pipeline(self.source, self.revision)

    @property
    def native_resolution(self) -> int:
        return self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    def encoder_fingerprint(self) -> str:
        """Changes with the frozen weights and their configs: a cache made by other encoders is never used."""
        digest = hashlib.sha256()
        for part in (self.pipe.vae, self.pipe.text_encoder):
            for weight in part.state_dict().values():
                digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
        configs = [
            self.pipe.vae.config,
            self.pipe.text_encoder.config.to_dict(),
            self.pipe.tokenizer.model_max_length,
        ]
        return json.dumps([digest.hexdigest(), configs], default=str, sort_keys=True)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, H, W) -> mean and deviation of the latents, in the UNet's scale."""
        vae = self.pipe.vae.to(device)
        posterior = vae.encode(pixels.to(device).float() / 127.5 - 1).latent_dist
        return posterior.mean * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], device: torch.device) -> Tensor:
        """Captions -> (B, tokens, width), as the pipeline itself would."""
        self.pipe.text_encoder.to(device)
        return self.pipe.encode_prompt(prompts, device, 1, do_classifier_free_guidance=False)[0]

    def configure_model(self) -> None:
        if hasattr(self, "trained"):
            return
        self.trained = self.pipe.unet.requires_grad_(True).train()
        if self.gradient_checkpointing:
            self.trained.enable_gradient_checkpointing()
        if self.channels_last:
            self.trained.to(memory_format=torch.channels_last)
        self.noise_schedule = training_scheduler(self.pipe.scheduler.config)

    def on_fit_start(self) -> None:
        self.empty = self.encode_prompts([""], self.device).detach()  # (1, tokens, width)
        self.pipe.text_encoder.to("cpu")
        self.pipe.vae.to("cpu")

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        """The loss to minimize; and each sample's own squared error, unweighted, with its timestep."""
        mean, std, embedding = batch["mean"], batch["std"], batch["embedding"]
        micro = batch_index % self.trainer.accumulate_grad_batches
        generator = generator_for(self.device, self.seed, self.global_rank, self.global_step, micro)
        side = torch.randint(0, mean.shape[1], (len(mean),), generator=generator, device=self.device)
        mean, std = (x[torch.arange(len(x), device=x.device), side] for x in (mean, std))
        latents = mean + std * torch.randn(mean.shape, generator=generator, device=self.device)
        noise = torch.randn(mean.shape, generator=generator, device=self.device)
        steps = self.noise_schedule.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(mean),), generator=generator, device=self.device)
        if self.caption_dropout:
            dropped = torch.rand(len(mean), generator=generator, device=self.device) < self.caption_dropout
            embedding = torch.where(dropped[:, None, None], self.empty.to(embedding), embedding)
        if self.noise_offset:  # drawn last: all else is as without it
            noise = offset_noise(noise, self.noise_offset, generator)
        noisy = self.noise_schedule.add_noise(latents, noise, timesteps)
        if self.channels_last:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        prediction = self.trained(noisy, timesteps, embedding).sample
        wanted = target(self.noise_schedule, latents, noise, timesteps)
        errors = F.mse_loss(prediction.float(), wanted, reduction="none").flatten(1).mean(1)
        if self.min_snr_gamma is None:
            loss = F.mse_loss(prediction.float(), wanted)
        else:
            loss = (min_snr_weight(self.noise_schedule, timesteps, self.min_snr_gamma) * errors).mean()
        self.log("loss", loss, prog_bar=True)
        return {"loss": loss, "errors": errors.detach(), "timesteps": timesteps}

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.trained.parameters(), self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )
        if self.decay == "cosine":
            return warmup_cosine(optimizer, self.warmup_steps, self.trainer.max_steps)
        return warmup_constant(optimizer, self.warmup_steps)

    def export(self, folder: Path) -> None:
        """The whole pipeline as a diffusers folder, in safetensors."""
        self.pipe.save_pretrained(folder, safe_serialization=True)


def training_scheduler(config: Any) -> Any:
    """The noise schedule the pipeline's sampler was made for, as a DDPMScheduler."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(config)
