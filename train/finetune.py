"""Finetune a Stable Diffusion pipeline; objective, latent scale and text length come from the pipeline."""

from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
)
from torch import Tensor, nn

from data.cli import warn_no_effect
from data.files import digest
from infer.denoising.sampling import embed
from infer.models.pipeline import load_pipeline
from infer.models.weights import quiet_bars
from train.dataset.encoders import encode_images, encode_prompts, settings, weights_digest
from train.embedding_noise import with_gaussian, with_mixup
from train.lora_layers import add_lora, has_lora, save_lora
from train.model_check import check_model, config_of
from train.objective import SharedDraws, epsilon_rms, min_snr_weight, offset_noise, training_target
from train.optimizers import adamw8bit, make_optimizer
from train.schedule import check_cosine, lr_schedule
from train.sharded import Sharded, gathered, shard

NOISE, TEXT_NOISE = 0, 1  # streams of random numbers: options of the text leave all other noise as it is


class Finetune(pl.LightningModule):
    """Train the UNet, and the text encoder if requested, on noised latents.

    Frozen parts stay out of checkpoints.

    Args:
        pipeline: diffusers StableDiffusionPipeline folder or Hub id.
        revision: branch, tag or commit of the Hub repository.
        train_text_encoder: train the text encoder too.
        lora_rank: train LoRA layers of this rank on the attention instead of all weights; null: all weights.
        lora_alpha: the LoRA is scaled by lora_alpha / lora_rank; null: by 1.
        optimizer: adamw, or adamw8bit (bitsandbytes).
        lr: learning rate after the warm-up.
        warmup_steps: optimizer steps of linear warm-up.
        decay: constant rate, or cosine to zero at trainer.max_steps.
        betas: of AdamW.
        weight_decay: of AdamW.
        caption_dropout: share of the captions replaced with the empty prompt.
        embedding_noise: strength of Gaussian noise on text embeddings (Somepalli et al. 2023).
        embedding_mixup: mix the text embeddings of a batch, with a weight from Beta(embedding_mixup, 1)
            (Somepalli et al. 2023); 0: none.
        skip_rms: leave samples out of the loss whose prediction differs from the one without caption by at
            least this RMS, in epsilon space (Wen et al. 2024, there a norm: 2 at 64x64x4 latents is
            2 / 128 = 0.0156); null: none. The threshold depends on the model: `kept_share` in the metrics is
            the share that remains. bf16 makes differences uncertain by about 0.005.
        gradient_checkpointing: trade time for memory.
        seed: of noise and timesteps.
        min_snr_gamma: weight timesteps by their signal-to-noise ratio, at most this (Hang et al. 2023: 5);
            null: all alike.
        noise_offset: strength of an offset per image and channel, added to the noise (usually 0.1).
    """

    def __init__(
        self,
        pipeline: str,
        revision: str | None = None,
        train_text_encoder: bool = False,
        lora_rank: PositiveInt | None = None,
        lora_alpha: PositiveFloat | None = None,
        optimizer: Literal["adamw", "adamw8bit"] = "adamw",
        lr: PositiveFloat = 1e-5,
        warmup_steps: NonNegativeInt = 0,
        decay: Literal["constant", "cosine"] = "constant",
        betas: tuple[OpenUnitInterval, OpenUnitInterval] = (0.9, 0.999),
        weight_decay: NonNegativeFloat = 1e-2,
        caption_dropout: ClosedUnitInterval = 0.0,
        embedding_noise: NonNegativeFloat = 0.0,
        embedding_mixup: NonNegativeFloat = 0.0,
        skip_rms: PositiveFloat | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 0,
        min_snr_gamma: PositiveFloat | None = None,
        noise_offset: NonNegativeFloat = 0.0,
    ):
        super().__init__()
        self.pipeline, self.revision, self.train_text_encoder = pipeline, revision, train_text_encoder
        self.lora_rank, self.lora_alpha = lora_rank, lora_alpha
        self.optimizer, self.lr, self.warmup_steps, self.decay = optimizer, lr, warmup_steps, decay
        self.betas, self.weight_decay, self.caption_dropout = betas, weight_decay, caption_dropout
        self.embedding_noise, self.embedding_mixup, self.skip_rms = embedding_noise, embedding_mixup, skip_rms
        self.gradient_checkpointing, self.seed = gradient_checkpointing, seed
        self.min_snr_gamma, self.noise_offset = min_snr_gamma, noise_offset
        if lora_alpha is not None and lora_rank is None:
            warn_no_effect("model.lora_alpha", "model.lora_rank is not given")

    def check(self, max_steps: int, batch_size: int) -> None:
        """Raise ValueError for options that cannot be trained with, before anything is loaded or encoded."""
        if self.decay == "cosine":
            check_cosine(self.warmup_steps, max_steps)
        if self.optimizer == "adamw8bit":
            adamw8bit()
        if self.embedding_mixup and batch_size == 1:
            raise ValueError("model.embedding_mixup mixes the captions of a batch: raise data.batch_size")

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, loaded when first needed; its frozen parts are not registered here."""
        pipe = self.load_pipeline()
        check_model(**config_of(pipe))
        return pipe

    def load_pipeline(self) -> Any:
        return load_pipeline(self.pipeline, self.revision)

    def configure_model(self) -> None:
        if hasattr(self, "unet"):
            return
        self.unet = self.prepared(self.pipe.unet)
        if self.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if self.train_text_encoder:
            self.text_encoder = self.prepared(self.pipe.text_encoder)
            if self.gradient_checkpointing:
                self.text_encoder.activation_checkpointing_enable()
        if isinstance(self.trainer.strategy, Sharded):
            if self.global_rank == 0:  # it generates and exports with a plain UNet, filled by `gather`
                self.pipe.unet = deepcopy(self.unet).requires_grad_(False)
            shard(self.unet, self.device_mesh["data_parallel"])
        self.noise_scheduler = DDPMScheduler.from_config(self.pipe.scheduler.config)

    def prepared(self, part: nn.Module) -> nn.Module:
        if self.lora_rank is None:
            part.requires_grad_(True)
        else:
            add_lora(part, self.lora_rank, self.lora_alpha)
        return part.train()

    def gather(self) -> None:
        """Copy the weights of a sharded UNet into the first rank's pipeline; called on all ranks."""
        weights = gathered(self.unet)
        if self.global_rank == 0:
            self.pipe.unet.load_state_dict(weights)

    def on_fit_start(self) -> None:
        self.empty = encode_prompts(self.pipe, [""], self.device)  # (1, tokens, width)
        for part in (self.pipe.text_encoder, self.pipe.vae):
            if not any(p.requires_grad for p in part.parameters()):
                part.to("cpu")  # returns to the device with the first batch that has to be encoded

    def latents(self, batch: dict[str, Any], draws: SharedDraws) -> Tensor:
        """A sample of each image's posterior, (B, C, h, w); half mirrored if the batch has both variants."""
        images = batch["mean"] if "mean" in batch else batch["pixels"]
        rows, variants = torch.arange(len(images), device=self.device), images.shape[1]
        variant = draws.integers(variants)
        if "mean" in batch:
            mean, std = (batch[name][rows, variant].float() for name in ("mean", "std"))
        else:
            mean, std = encode_images(self.pipe, images[rows, variant], self.device)
        return mean + std * draws.normal(*mean.shape[1:])

    def embeddings(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Of the captions, (B, tokens, width), and of the empty prompt, (1, tokens, width)."""
        if "embedding" in batch:
            return batch["embedding"].float(), self.empty
        if not self.train_text_encoder:
            return encode_prompts(self.pipe, batch["caption"], self.device), self.empty
        encoded = embed(self.pipe, [*batch["caption"], ""], self.device)
        return encoded[:-1], encoded[-1:]

    def training_step(self, batch: dict[str, Any], batch_index: int) -> dict[str, Tensor]:
        """The loss; each sample's own squared error, unweighted, and timestep; `kept` if some are not."""
        rows = len(batch["mean"] if "mean" in batch else batch["pixels"])
        key = (self.global_step, batch_index % self.trainer.accumulate_grad_batches)
        rank = (self.device, rows, self.global_rank, self.trainer.world_size, self.seed)
        draws = SharedDraws(*rank, NOISE, *key)
        latents = self.latents(batch, draws)
        noise = draws.normal(*latents.shape[1:])
        timesteps = draws.integers(self.noise_scheduler.config.num_train_timesteps)
        encoder_hidden_states, empty = self.embeddings(batch)
        if self.embedding_noise or self.embedding_mixup:
            text_draws = SharedDraws(*rank, TEXT_NOISE, *key)
            if self.embedding_noise:
                encoder_hidden_states = with_gaussian(encoder_hidden_states, self.embedding_noise, text_draws)
            if self.embedding_mixup:
                encoder_hidden_states = with_mixup(encoder_hidden_states, self.embedding_mixup, text_draws)
        if self.caption_dropout:
            dropped = (draws.uniform() < self.caption_dropout)[:, None, None]
            encoder_hidden_states = encoder_hidden_states.where(~dropped, empty.to(encoder_hidden_states))
        if self.noise_offset:  # drawn last: the other draws are the same as without it
            noise = offset_noise(noise, self.noise_offset, draws.normal(latents.shape[1], 1, 1))
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        prediction = self.unet(noisy, timesteps, encoder_hidden_states).sample
        target = training_target(self.noise_scheduler, latents, noise, timesteps)
        errors = F.mse_loss(prediction.float(), target, reduction="none").flatten(1).mean(1)
        out = {"errors": errors.detach(), "timesteps": timesteps}
        weights = 1
        if self.min_snr_gamma is not None:
            weights = min_snr_weight(self.noise_scheduler, timesteps, self.min_snr_gamma)
        kept = batch.get("readable")
        if self.skip_rms is not None:
            similar = self.below_skip_rms(noisy, timesteps, prediction, empty)
            kept = similar if kept is None else kept & similar
        if kept is None:
            loss = (weights * errors).mean()
        else:
            out["kept"] = kept
            total = sum_over_ranks(kept.float().sum())
            # the mean over the kept samples of all ranks, whose gradients are averaged
            loss = (weights * errors).where(kept, 0).sum() * self.trainer.world_size / total.clamp(min=1)
            if self.skip_rms is not None:
                self.log("kept_share", total / (rows * self.trainer.world_size))
        self.log("loss", self.mean_over_ranks(loss.detach()), prog_bar=True)
        return out | {"loss": loss}

    def mean_over_ranks(self, loss: Tensor) -> Tensor:
        """The mean over ranks in steps that are logged; else this rank's, which needs no waiting."""
        every = self.trainer.log_every_n_steps
        if not every or (self.global_step + 1) % every:
            return loss
        return sum_over_ranks(loss.clone()) / self.trainer.world_size

    @torch.no_grad()
    def below_skip_rms(self, noisy: Tensor, timesteps: Tensor, prediction: Tensor, empty: Tensor) -> Tensor:
        """Samples below the threshold at their timestep, (B,): Wen et al., ICLR 2024, applied in training."""
        unconditional = self.unet(noisy, timesteps, empty.expand(len(noisy), -1, -1)).sample
        difference = prediction.float() - unconditional.float()
        return epsilon_rms(self.noise_scheduler, difference, timesteps) < self.skip_rms

    def configure_optimizers(self) -> dict:
        weights = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # Lightning refuses to clip the gradients of fused optimizers in mixed precision
        fused = not (self.trainer.gradient_clip_val and self.trainer.precision.endswith("-mixed"))
        optimizer = make_optimizer(self.optimizer, weights, self.lr, self.betas, self.weight_decay, fused)
        decay = "constant" if self.trainer.fast_dev_run else self.decay
        return lr_schedule(optimizer, decay, self.warmup_steps, self.trainer.max_steps)

    def frozen(self) -> set[str]:
        """Names of the weights that a LoRA leaves unchanged."""
        return {name for name, parameter in self.named_parameters() if not parameter.requires_grad}

    @cached_property
    def frozen_parts(self) -> dict[str, str]:
        """Digest of each part of the pipeline that is not trained, or of the weights below its LoRA.

        The scheduler decides what the UNet is trained to predict, the tokenizer what a caption is.
        """
        parts = {"vae": self.pipe.vae}
        if not self.train_text_encoder or self.lora_rank:
            parts["text_encoder"] = self.pipe.text_encoder
        if self.lora_rank:
            parts["unet"] = self.pipe.unet
        tokenizer = self.pipe.tokenizer
        return {name: weights_digest(part) for name, part in parts.items()} | {
            "scheduler": digest(settings(self.pipe.scheduler.config)),
            "tokenizer": digest(sorted(tokenizer.get_vocab().items()), tokenizer.model_max_length),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen, weights = self.frozen(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in weights.items() if name not in frozen}
        checkpoint["frozen_parts"] = self.frozen_parts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        before, now = checkpoint["frozen_parts"], self.frozen_parts
        if changed := [name for name, old in before.items() if now.get(name) != old]:
            raise ValueError(
                f"the {', '.join(changed)} of {self.pipeline!r} changed since the checkpoint was written: "
                "restore the model, or choose another --out"
            )
        if frozen := self.frozen():
            kept = {name: value for name, value in self.state_dict().items() if name in frozen}
            checkpoint["state_dict"] = kept | checkpoint["state_dict"]

    def export(self, folder: Path) -> None:
        """Write the pipeline as a diffusers folder in safetensors; a LoRA is fused, and alone in `lora/`."""
        pipe = self.pipe
        if has_lora(pipe.unet):
            save_lora(folder / "lora", pipe.unet, pipe.text_encoder)
            pipe = load_pipeline(self.pipeline, self.revision, lora=str(folder / "lora"))
        with quiet_bars():
            pipe.save_pretrained(folder, safe_serialization=True)


def sum_over_ranks(value: Tensor) -> Tensor:
    """In place, without the barrier of Lightning's own reductions, which would make each step wait."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
    return value
