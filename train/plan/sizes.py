"""Sizes of a model from its configs alone: no weights are read, nothing is downloaded."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from infer.denoising.sampling import side_of
from infer.models.weights import is_file_name, is_hub_id
from train.lora_layers import ATTENTION
from train.model_check import token_count

FLOAT = 4  # bytes
MIN_8BIT = 4096  # entries: bitsandbytes keeps the states of smaller tensors in float32
BLOCK_8BIT = 256  # entries that share a float32 scale
FILES = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
Configs = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a Stable Diffusion pipeline.

    Attributes:
        unet, text_encoder, vae: entries of each parameter tensor.
        unet_lora, text_encoder_lora: (in, out) of each attention projection.
        channels: of the latents.
        factor: pixels per latent entry, along a side.
        sample_size: side of the latents that the UNet was made for.
        tokens, width: shape of a caption's embedding.
    """

    unet: tuple[int, ...]
    text_encoder: tuple[int, ...]
    vae: tuple[int, ...]
    unet_lora: tuple[tuple[int, int], ...]
    text_encoder_lora: tuple[tuple[int, int], ...]
    channels: int
    factor: int
    sample_size: int
    tokens: int
    width: int

    def latent(self, resolution: int | None) -> tuple[int, int, int]:
        """Shape (C, h, w) of an image's latent; ValueError for a resolution that the model cannot take."""
        unet = SimpleNamespace(config=SimpleNamespace(sample_size=self.sample_size))
        side = side_of(SimpleNamespace(vae_scale_factor=self.factor, unet=unet), resolution) // self.factor
        return self.channels, side, side

    def trained(self, text_encoder: bool, rank: int | None) -> tuple[int, ...]:
        """Entries of each trained tensor. A LoRA has two per projection: A (rank, in) and B (out, rank)."""
        if rank is None:
            return self.unet + (self.text_encoder if text_encoder else ())
        layers = self.unet_lora + (self.text_encoder_lora if text_encoder else ())
        return tuple(rank * width for layer in layers for width in layer)


def moments(tensors: Iterable[int], optimizer: str) -> int:
    """Bytes of AdamW's two averages over tensors of these numbers of entries.

    adamw: 8 an entry. adamw8bit: 2, and two float32 scales a block of 256, for tensors of 4096 entries or
    more (Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", section 2).
    """
    return sum(
        2 * (entries + FLOAT * -(-entries // BLOCK_8BIT))
        if optimizer == "adamw8bit" and entries >= MIN_8BIT
        else 2 * FLOAT * entries
        for entries in tensors
    )


def read_configs(name: str, revision: str | None = None) -> Configs | None:
    """Configs of a diffusers folder, or of a Hub id that was downloaded before; None for other ids and files.

    Raises FileNotFoundError for a folder without one of them.
    """
    if is_file_name(name):
        return None
    if is_hub_id(name):
        from huggingface_hub import try_to_load_from_cache

        paths = {part: try_to_load_from_cache(name, file, revision=revision) for part, file in FILES.items()}
        if not all(isinstance(path, str) for path in paths.values()):
            return None
    else:
        paths = {part: Path(name) / file for part, file in FILES.items()}
        if missing := [str(path) for path in paths.values() if not path.is_file()]:
            raise FileNotFoundError(f"{name!r} is not a whole diffusers pipeline: no {', '.join(missing)}")
    return {part: json.loads(Path(path).read_text()) for part, path in paths.items()}


def sizes_of(configs: Configs) -> Sizes:
    """Sizes of the models that the configs describe.

    Parameters are counted on the meta device: files of weights may hold buffers, or one model several times.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text_config = CLIPTextConfig.from_dict(configs["text_encoder"])
    with torch.device("meta"):
        parts = (
            UNet2DConditionModel.from_config(configs["unet"]),
            CLIPTextModel(text_config),
            AutoencoderKL.from_config(configs["vae"]),
        )
    return Sizes(
        *(tuple(weight.numel() for weight in part.parameters()) for part in parts),
        *(projections(part) for part in parts[:2]),
        channels=parts[2].config.latent_channels,
        factor=2 ** (len(parts[2].config.block_out_channels) - 1),
        sample_size=parts[0].config.sample_size,
        tokens=token_count(configs["tokenizer"], configs["text_encoder"]),
        width=text_config.hidden_size,
    )


def projections(part: nn.Module) -> tuple[tuple[int, int], ...]:
    """(in, out) of the layers that `train.lora_layers.add_lora` changes."""
    ends = tuple(f".{layer}" for layer in ATTENTION)
    return tuple(
        (module.in_features, module.out_features)
        for name, module in part.named_modules()
        if name.endswith(ends)
    )
