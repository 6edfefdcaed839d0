"""Train an AutoencoderKL from nothing: the bundled world's own image codec, of Stable Diffusion's class."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from jsonargparse.typing import PositiveInt
from torch import Tensor

from train.schedule import lr_schedule


def edges(x: Tensor) -> Tensor:
    """Differences of neighbouring pixels, both ways, flattened per image."""
    return torch.cat([(x[..., 1:] - x[..., :-1]).flatten(1), (x[..., 1:, :] - x[..., :-1, :]).flatten(1)], 1)


def psnr(reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, (B,); of images in [-1, 1], black to white is the peak."""
    mse = (reconstruction.clamp(-1, 1) - pixels).div(2).pow(2).flatten(1).mean(1)
    return -10 * mse.clamp_min(1e-10).log10()


class AutoencoderTraining(pl.LightningModule):
    """L1 + MSE + edge difference + a small KL; the learned latents are whitened when the model is exported.

    Args:
        architecture: keyword arguments of diffusers' AutoencoderKL.
        autoencoder: folder with `vae/` to go on with, in place of an architecture.
        latent_channels: of this autoencoder, if more than it has.
        freeze_encoder: train the decoder alone: the latents stay those that a UNet knows.
        lr: peak of the learning rate (linear warm-up, cosine to zero).
        warmup_steps: steps of the warm-up.
        edge_weight: weight of the edge term, which keeps outlines sharp.
        kl_weight: weight of the KL term, in nats per latent entry.
        initial_log_variance: of the latents' noise; from 0 (deviation 1) the decoder learns to ignore its
            input.
    """

    def __init__(
        self,
        architecture: dict[str, Any] | None = None,
        autoencoder: str | None = None,
        latent_channels: PositiveInt | None = None,
        freeze_encoder: bool = False,
        lr: float = 1e-3,
        warmup_steps: int = 300,
        edge_weight: float = 0.5,
        kl_weight: float = 2e-5,
        initial_log_variance: float = -6.0,
    ):
        super().__init__()
        self.lr, self.warmup_steps = lr, warmup_steps
        self.edge_weight, self.kl_weight = edge_weight, kl_weight
        if (architecture is None) == (autoencoder is None):
            raise ValueError("give model.architecture for a new autoencoder, or model.autoencoder")
        self.architecture, self.autoencoder = architecture, autoencoder
        self.latent_channels, self.freeze_encoder = latent_channels, freeze_encoder
        self.initial_log_variance = initial_log_variance

    def configure_model(self) -> None:
        if hasattr(self, "vae"):
            return
        if self.autoencoder:
            folder = Path(self.autoencoder) / "vae"
            self.vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True).float()
            if self.latent_channels:
                self.vae = widened(self.vae, int(self.latent_channels), self.initial_log_variance)
        else:
            self.vae = AutoencoderKL(**self.architecture)
            quiet_start(self.vae, self.initial_log_variance)
        self.vae.to(memory_format=torch.channels_last)
        if self.freeze_encoder:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)

    def training_step(self, batch: dict, step: int) -> Tensor:
        pixels = self.images(batch)
        posterior = self.vae.encode(pixels).latent_dist
        reconstruction = self.vae.decode(posterior.sample()).sample.float()
        difference = reconstruction - pixels
        l1, mse = difference.abs().mean(), difference.pow(2).mean()
        edge = edges(difference).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1 + mse + self.edge_weight * edge + self.kl_weight * kl
        self.log_dict({"loss": loss, "l1": l1, "mse": mse, "edge": edge, "kl": kl}, prog_bar=False)
        self.log("psnr", psnr(reconstruction.detach(), pixels).mean(), prog_bar=True)
        return loss

    def validation_step(self, batch: dict, step: int) -> None:
        pixels = self.images(batch)
        reconstruction = self.vae.decode(self.vae.encode(pixels).latent_dist.mean).sample.float()
        value = psnr(reconstruction, pixels).mean()
        self.log("val_psnr", value, prog_bar=True, batch_size=len(pixels), sync_dist=True)

    def images(self, batch: dict) -> Tensor:
        """uint8 (B, 3, H, W) -> [-1, 1]."""
        return (batch["pixels"].float() / 127.5 - 1).to(memory_format=torch.channels_last)

    def configure_optimizers(self) -> dict:
        weights = [weight for weight in self.vae.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, self.lr, betas=(0.9, 0.99), weight_decay=1e-4)
        return lr_schedule(optimizer, "cosine", self.warmup_steps, self.trainer.max_steps)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write a diffusers AutoencoderKL folder.

        Its latents have mean 0 and deviation 1 in each channel, or are as they were with `freeze_encoder`.
        """
        vae = AutoencoderKL.from_config(self.vae.config)
        vae.load_state_dict(self.vae.state_dict())
        if not self.freeze_encoder:
            latents = self.latents()
            whiten(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
        vae.half().save_pretrained(folder / "vae")

    def latents(self) -> Tensor:
        """Means of the latents of all images, (N, C, h, w)."""
        batches = (
            self.transfer_batch_to_device(batch, self.device, 0)
            for batch in self.trainer.datamodule.val_dataloader()
        )
        means = [self.vae.encode(self.images(batch)).latent_dist.mean.float().cpu() for batch in batches]
        return torch.cat(means)


@torch.no_grad()
def quiet_start(vae: AutoencoderKL, log_variance: float) -> None:
    """Residual blocks begin as identities, and latents with little noise."""
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            block.conv2.weight.zero_()
            block.conv2.bias.zero_()
    half = vae.config.latent_channels
    vae.quant_conv.weight[half:] *= 0.1
    vae.quant_conv.bias[half:] = log_variance


@torch.no_grad()
def widened(vae: AutoencoderKL, latent_channels: int, log_variance: float) -> AutoencoderKL:
    """The same autoencoder with further latent channels, which its decoder hardly reads yet."""
    former, c = vae.config.latent_channels, latent_channels
    wide = AutoencoderKL.from_config({**vae.config, "latent_channels": c})
    for name, value in wide.state_dict().items():
        if vae.state_dict()[name].shape == value.shape:
            value.copy_(vae.state_dict()[name])
    kept = torch.cat([torch.arange(former), c + torch.arange(former)])  # means, then log-variances
    quant, post, reader = wide.quant_conv, wide.post_quant_conv, wide.decoder.conv_in
    for layer, size in ((quant, 2 * c), (post, c)):
        layer.weight.copy_(torch.eye(size)[:, :, None, None])
        layer.bias.zero_()
    quant.weight[c + former :] = 0
    quant.bias[c + former :] = log_variance
    quant.weight[kept[:, None], kept] = vae.quant_conv.weight
    quant.bias[kept] = vae.quant_conv.bias
    wide.encoder.conv_out.weight[kept] = vae.encoder.conv_out.weight
    wide.encoder.conv_out.bias[kept] = vae.encoder.conv_out.bias
    post.weight[:former, :former] = vae.post_quant_conv.weight
    post.bias[:former] = vae.post_quant_conv.bias
    reader.weight *= 0.1
    reader.weight[:, :former] = vae.decoder.conv_in.weight
    reader.bias.copy_(vae.decoder.conv_in.bias)
    return wide


def whiten(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Fold z -> (z - mean) / std into the 1x1 convolutions around the latents, so that `scaling_factor` is 1.

    Stable Diffusion scales all channels by one number; folding gives each its own, and no reader has to know.
    """
    quant, post = vae.quant_conv, vae.post_quant_conv
    mean, std = mean.to(quant.weight), std.to(quant.weight)
    row = torch.cat([1 / std, torch.ones_like(std)])
    quant.weight.data *= row[:, None, None, None]
    quant.bias.data = (quant.bias.data - torch.cat([mean, torch.zeros_like(mean)])) * row
    quant.bias.data[len(std) :] -= 2 * std.log()  # the second half are log-variances
    post.bias.data += (post.weight.data[:, :, 0, 0] * mean).sum(1)
    post.weight.data *= std[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
