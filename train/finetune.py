"""Finetune a Stable Diffusion pipeline; objective, scale and text length come from the pipeline."""

import math
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infer.models.pipeline import load_pipeline
from infer.models.weights import no_warnings
from train.dataset.encoders import encode_images, encode_prompts
from train.embedding_noise import with_gaussian, with_mixup
from train.lora_layers import add_lora, has_lora, save_lora
from train.objective import SharedDraws, epsilon_rms, min_snr_weight, offset_noise, target
from train.optimizers import adamw8bit, make_optimizer
from train.schedule import check_cosine, warmup_constant, warmup_cosine
from train.sharded import Sharded, shard, whole

NOISE, TEXT_NOISE = 0, 1  # streams of random numbers: an option of the text leaves all other noise as it is


class Finetune(pl.LightningModule):
    """Train the UNet (`trained`), and the text encoder if asked for, on noised latents.

    The frozen parts stay out of checkpoints.

    Args:
        pipeline: diffusers StableDiffusionPipeline folder or Hub id.
        revision: of the Hub repository.
        text_encoder: train it too.
        lora_rank: train LoRA layers of this rank on the attention instead of all weights; null: all.
        lora_alpha: the LoRA is scaled by lora_alpha / lora_rank; null: by 1.
        optimizer: adamw, or adamw8bit (bitsandbytes).
        lr: learning rate after the warm-up.
        warmup_steps: linear warm-up.
        decay: constant rate, or cosine to zero at trainer.max_steps.
        betas: of AdamW.
        weight_decay: of AdamW.
        caption_dropout: share of the captions replaced with the empty prompt.
        embedding_noise: strength of Gaussian noise on text embeddings (Somepalli et al. 2023).
        embedding_mixup: parameter of a Beta(embedding_mixup, 1) mix of a batch's text embeddings (the same);
            0: none.
        skip_rms: leave out samples whose prediction differs from the one without caption by this RMS, in
            epsilon space, or more (Wen et al. 2024, there a norm: 2 at 64x64x4 latents is 2 / 128 = 0.0156);
            null: none. A threshold is a model's own: `kept_share` in the metrics says what it leaves. The
            mean is over what a batch keeps; bf16 makes differences uncertain by about 0.005.
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
        text_encoder: bool = False,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        optimizer: Literal["adamw", "adamw8bit"] = "adamw",
        lr: float = 1e-5,
        warmup_steps: int = 0,
        decay: Literal["constant", "cosine"] = "constant",
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        caption_dropout: float = 0.0,
        embedding_noise: float = 0.0,
        embedding_mixup: float = 0.0,
        skip_rms: float | None = None,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        seed: int = 0,
        min_snr_gamma: float | None = None,
        noise_offset: float = 0.0,
    ):
        if min_snr_gamma is not None and not 0 < min_snr_gamma < math.inf:
            raise ValueError(f"min_snr_gamma must be above 0, not {min_snr_gamma}; null weights all alike")
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be above 0, not {lr}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), not {betas}")
        for name, value in (
            ("weight_decay", weight_decay),
            ("noise_offset", noise_offset),
            ("embedding_noise", embedding_noise),
            ("embedding_mixup", embedding_mixup),
            ("warmup_steps", warmup_steps),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0, not {value}")
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout must be in [0, 1], not {caption_dropout}")
        for name, value in (
            ("embedding_noise", embedding_noise),
            ("embedding_mixup", embedding_mixup),
            ("skip_rms", skip_rms),
        ):
            if value and caption_dropout == 1:
                raise ValueError(f"{name} has no effect where no caption is left: lower caption_dropout 1")
        if skip_rms is not None and not 0 < skip_rms < math.inf:
            raise ValueError(f"skip_rms must be above 0, not {skip_rms}; null skips none")
        if lora_rank is not None and lora_rank < 1:
            raise ValueError(f"lora_rank must be at least 1, not {lora_rank}; null trains all weights")
        if lora_alpha is not None and not 0 < lora_alpha < math.inf:
            raise ValueError(f"lora_alpha must be above 0, not {lora_alpha}; null is lora_rank")
        if lora_alpha is not None and lora_rank is None:
            raise ValueError("lora_alpha has no effect without lora_rank: leave it out, or give both")
        super().__init__()
        self.source, self.revision = pipeline, revision
        self.text_encoder, self.lora_rank, self.lora_alpha = text_encoder, lora_rank, lora_alpha
        self.optimizer, self.lr, self.warmup_steps, self.decay = optimizer, lr, warmup_steps, decay
        self.betas, self.weight_decay, self.caption_dropout = betas, weight_decay, caption_dropout
        self.embedding_noise, self.embedding_mixup = embedding_noise, embedding_mixup
        self.skip_rms = skip_rms
        self.gradient_checkpointing, self.channels_last = gradient_checkpointing, channels_last
        self.seed, self.min_snr_gamma, self.noise_offset = seed, min_snr_gamma, noise_offset

    def check(self, max_steps: int, batch_size: int) -> None:
        """ValueError for what could not be trained so: said before anything is loaded or encoded."""
        if self.decay == "cosine":
            check_cosine(self.warmup_steps, max_steps)
        if self.optimizer == "adamw8bit":
            adamw8bit()
        if self.embedding_mixup and batch_size == 1:
            raise ValueError("model.embedding_mixup mixes the captions of a batch: raise data.batch_size")

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, loaded when first needed. No nn.Module, so its frozen parts do not register here."""
        return self.load_pipeline()

    def load_pipeline(self) -> Any:
        return load_pipeline(self.source, self.revision)

    @property
    def native_resolution(self) -> int:
        return self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    def check_resolution(self, resolution: int) -> None:
        """ValueError for a side that the UNet cannot halve as often as it does."""
        unit = self.pipe.vae_scale_factor * 2 ** (len(self.pipe.unet.config.block_out_channels) - 1)
        if resolution < unit or resolution % unit:
            raise ValueError(f"data.resolution must be a multiple of {unit} for this model, not {resolution}")

    def configure_model(self) -> None:
        if hasattr(self, "trained"):
            return
        self.trained = self.prepared(self.pipe.unet)
        if self.gradient_checkpointing:
            self.trained.enable_gradient_checkpointing()
        if self.channels_last:
            self.trained.to(memory_format=torch.channels_last)
        if self.text_encoder:
            self.trained_text = self.prepared(self.pipe.text_encoder)
            if self.gradient_checkpointing:
                self.trained_text.activation_checkpointing_enable()
        if isinstance(self.trainer.strategy, Sharded):
            if self.global_rank == 0:  # who makes images and exports: with a plain UNet, filled by `gather`
                self.pipe.unet = deepcopy(self.trained).requires_grad_(False)
            shard(self.trained, self.device_mesh["data_parallel"])
        self.noise_schedule = training_scheduler(self.pipe.scheduler.config)

    def prepared(self, part: nn.Module) -> nn.Module:
        if self.lora_rank is None:
            part.requires_grad_(True)
        else:
            add_lora(part, self.lora_rank, self.lora_alpha)
        return part.train()

    def gather(self) -> None:
        """Put the weights of a sharded UNet into the first rank's pipeline; called on all ranks."""
        weights = whole(self.trained)
        if self.global_rank == 0:
            self.pipe.unet.load_state_dict(weights)

    def on_fit_start(self) -> None:
        self.empty = encode_prompts(self.pipe, [""], self.device)  # (1, tokens, width)
        for part in (self.pipe.text_encoder, self.pipe.vae):
            if not any(p.requires_grad for p in part.parameters()):
                part.to("cpu")  # what is encoded each step comes back with the first

    def latents(self, batch: dict[str, Any], draws: SharedDraws) -> Tensor:
        """A sample of each image's posterior, (B, C, h, w), half of them mirrored if both sides are there."""
        images = batch["mean"] if "mean" in batch else batch["pixels"]
        rows, sides = torch.arange(len(images), device=self.device), images.shape[1]
        side = draws.integers(sides)
        if "mean" in batch:
            mean, std = (batch[name][rows, side] for name in ("mean", "std"))
        else:
            mean, std = encode_images(self.pipe, images[rows, side], self.device)
        return mean + std * draws.normal(*mean.shape[1:])

    def embeddings(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Of the captions, (B, tokens, width), and of the empty prompt, (1, tokens, width)."""
        if "embedding" in batch:
            return batch["embedding"], self.empty
        if not self.text_encoder:
            return encode_prompts(self.pipe, batch["caption"], self.device), self.empty
        texts = [*batch["caption"], ""]
        with no_warnings():  # captions that are too long were reported once, by the data
            encoded = self.pipe.encode_prompt(texts, self.device, 1, do_classifier_free_guidance=False)[0]
        return encoded[:-1], encoded[-1:]

    def training_step(self, batch: dict[str, Any], batch_index: int) -> dict[str, Tensor]:
        """The loss to minimize; and each sample's own squared error, unweighted, with its timestep."""
        rows = len(batch["mean"] if "mean" in batch else batch["pixels"])
        key = (self.global_step, batch_index % self.trainer.accumulate_grad_batches)
        place = (self.device, rows, self.global_rank, self.trainer.world_size, self.seed)
        draws = SharedDraws(*place, NOISE, *key)
        latents = self.latents(batch, draws)
        noise = draws.normal(*latents.shape[1:])
        timesteps = draws.integers(self.noise_schedule.config.num_train_timesteps)
        embedding, empty = self.embeddings(batch)
        if self.embedding_noise or self.embedding_mixup:
            text_draws = SharedDraws(*place, TEXT_NOISE, *key)
            if self.embedding_noise:
                embedding = with_gaussian(embedding, self.embedding_noise, text_draws)
            if self.embedding_mixup:
                embedding = with_mixup(embedding, self.embedding_mixup, text_draws)
        if self.caption_dropout:
            dropped = draws.uniform() < self.caption_dropout
            embedding = torch.where(dropped[:, None, None], empty.to(embedding), embedding)
        if self.noise_offset:  # drawn last: all else is as without it
            noise = offset_noise(noise, self.noise_offset, draws.normal(latents.shape[1], 1, 1))
        noisy = self.noise_schedule.add_noise(latents, noise, timesteps)
        if self.channels_last:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        prediction = self.trained(noisy, timesteps, embedding).sample
        wanted = target(self.noise_schedule, latents, noise, timesteps)
        errors = F.mse_loss(prediction.float(), wanted, reduction="none").flatten(1).mean(1)
        out = {"errors": errors.detach(), "timesteps": timesteps}
        weighted = errors
        if self.min_snr_gamma is not None:
            weighted = errors * min_snr_weight(self.noise_schedule, timesteps, self.min_snr_gamma)
        if self.skip_rms is None:
            loss = weighted.mean()
        else:
            out["kept"] = self.kept(noisy, timesteps, prediction, empty)
            total = sum_over_ranks(out["kept"].float().sum())
            # the mean over what is kept on all ranks, whose gradients are averaged
            loss = (weighted * out["kept"]).sum() * self.trainer.world_size / total.clamp(min=1)
            self.log("kept_share", total / (rows * self.trainer.world_size))
        self.log("loss", self.of_all_ranks(loss.detach()), prog_bar=True)
        return out | {"loss": loss}

    def of_all_ranks(self, loss: Tensor) -> Tensor:
        """The mean over ranks in steps that are logged; else this rank's, for which nobody has to wait."""
        every = self.trainer.log_every_n_steps
        if not every or (self.global_step + 1) % every:
            return loss
        return sum_over_ranks(loss.clone()) / self.trainer.world_size

    @torch.no_grad()
    def kept(self, noisy: Tensor, timesteps: Tensor, prediction: Tensor, empty: Tensor) -> Tensor:
        """Samples below the threshold at the timestep drawn, (B,): Wen et al., ICLR 2024, on training."""
        unconditional = self.trained(noisy, timesteps, empty.expand(len(noisy), -1, -1)).sample
        difference = prediction.float() - unconditional.float()
        return epsilon_rms(self.noise_schedule, difference, timesteps) < self.skip_rms

    def configure_optimizers(self) -> dict:
        weights = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # Lightning refuses to clip the gradients of fused optimizers in mixed precision
        fused = not (self.trainer.gradient_clip_val and self.trainer.precision.endswith("-mixed"))
        optimizer = make_optimizer(self.optimizer, weights, self.lr, self.betas, self.weight_decay, fused)
        if self.decay == "cosine":
            return warmup_cosine(optimizer, self.warmup_steps, self.trainer.max_steps)
        return warmup_constant(optimizer, self.warmup_steps)

    def frozen(self) -> set[str]:
        """Names of the weights that a LoRA leaves as they are."""
        return {name for name, parameter in self.named_parameters() if not parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen, weights = self.frozen(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in weights.items() if name not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if frozen := self.frozen():
            kept = {name: value for name, value in self.state_dict().items() if name in frozen}
            checkpoint["state_dict"] = kept | checkpoint["state_dict"]

    def export(self, folder: Path) -> None:
        """The whole pipeline as a diffusers folder, in safetensors; a LoRA is fused, and alone in `lora/`."""
        pipe = self.pipe
        if has_lora(pipe.unet):
            save_lora(folder / "lora", pipe.unet, pipe.text_encoder)
            pipe = load_pipeline(self.source, self.revision, lora=str(folder / "lora"))
        pipe.save_pretrained(folder, safe_serialization=True)


def sum_over_ranks(value: Tensor) -> Tensor:
    """In place, without the barrier of Lightning's own reductions, which would make each step wait."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
    return value


def training_scheduler(config: Any) -> Any:
    """The noise schedule the pipeline's sampler was made for, as a DDPMScheduler."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(config)
