"""How large a model is, from its configs alone: no weight is read, nothing is fetched."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from infer.models.weights import is_file_name, is_hub_id
from train.lora_layers import ATTENTION

FLOAT = 4  # bytes
MIN_8BIT = 4096  # entries: bitsandbytes keeps the states of smaller tensors in float32
BLOCK_8BIT = 256  # entries that share a float32 scale
FILES = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json")
UNSET_LENGTH = 10**6  # a tokenizer without model_max_length has one of 1e30


@dataclass(frozen=True)
class Sizes:
    """Of a Stable Diffusion pipeline.

    Args:
        unet, text_encoder, vae: entries of each parameter tensor.
        unet_lora, text_encoder_lora: (in, out) of each attention projection.
        channels: of the latents.
        factor: pixels on the side of a latent's entry.
        unit: pixels that a side must be a multiple of.
        native_resolution: side in pixels that the UNet was made for.
        tokens, width: shape of a caption's embedding.
    """

    unet: tuple[int, ...]
    text_encoder: tuple[int, ...]
    vae: tuple[int, ...]
    unet_lora: tuple[tuple[int, int], ...]
    text_encoder_lora: tuple[tuple[int, int], ...]
    channels: int
    factor: int
    unit: int
    native_resolution: int
    tokens: int
    width: int

    def latent(self, resolution: int) -> tuple[int, int, int]:
        """Shape (C, h, w) of an image's latent."""
        return self.channels, resolution // self.factor, resolution // self.factor

    def check_resolution(self, resolution: int | None) -> None:
        """ValueError for a side that the UNet cannot halve as often as it does."""
        if resolution is not None and resolution % self.unit:
            raise ValueError(
                f"data.resolution must be a multiple of {self.unit} for this model, not {resolution}"
            )

    def trained(self, text_encoder: bool, rank: int | None) -> tuple[int, ...]:
        """Entries of each trained tensor. A LoRA has two a projection: A (rank, in) and B (out, rank)."""
        if rank is None:
            return self.unet + (self.text_encoder if text_encoder else ())
        layers = self.unet_lora + (self.text_encoder_lora if text_encoder else ())
        return tuple(rank * side for layer in layers for side in layer)


def moments(tensors: Iterable[int], optimizer: str) -> int:
    """Bytes of AdamW's two averages over tensors of so many entries.

    adamw: 8 an entry. adamw8bit: 2, and two float32 scales a block of 256, for tensors of 4096 entries or
    more (Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", section 2).
    """
    return sum(
        2 * (entries + FLOAT * -(-entries // BLOCK_8BIT))
        if optimizer == "adamw8bit" and entries >= MIN_8BIT
        else 2 * FLOAT * entries
        for entries in tensors
    )


def sizes(name: str, revision: str | None = None) -> Sizes | None:
    """Of a diffusers folder, or of a Hub id that was fetched before; None for other Hub ids and single files.

    Parameters are counted on the meta device: files of weights may hold buffers, or one model several times.

    Raises FileNotFoundError for a folder without one of the four configs.
    """
    if is_file_name(name):
        return None
    if is_hub_id(name):
        from huggingface_hub import try_to_load_from_cache

        found = [try_to_load_from_cache(name, file, revision=revision) for file in FILES]
        if not all(isinstance(path, str) for path in found):
            return None
        paths = [Path(path) for path in found]
    else:
        paths = [Path(name) / file for file in FILES]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{name!r} is not a whole diffusers pipeline: no {', '.join(missing)}")
    return of_configs(*(json.loads(path.read_text()) for path in paths))


def of_configs(unet: dict, vae: dict, text_encoder: dict, tokenizer: dict[str, Any]) -> Sizes:
    """Of the models that the configs describe."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    about = CLIPTextConfig.from_dict(text_encoder)
    with torch.device("meta"):
        parts = (
            UNet2DConditionModel.from_config(unet),
            CLIPTextModel(about),
            AutoencoderKL.from_config(vae),
        )
    factor = 2 ** (len(parts[2].config.block_out_channels) - 1)
    length = tokenizer.get("model_max_length", UNSET_LENGTH)
    return Sizes(
        *(tuple(weight.numel() for weight in part.parameters()) for part in parts),
        *(projections(part) for part in parts[:2]),
        channels=parts[2].config.latent_channels,
        factor=factor,
        unit=factor * 2 ** (len(parts[0].config.block_out_channels) - 1),
        native_resolution=parts[0].config.sample_size * factor,
        tokens=int(length) if length < UNSET_LENGTH else about.max_position_embeddings,
        width=about.hidden_size,
    )


def projections(part: nn.Module) -> tuple[tuple[int, int], ...]:
    """(in, out) of the layers that `train.lora_layers.add_lora` changes."""
    ends = tuple(f".{layer}" for layer in ATTENTION)
    return tuple(
        (module.in_features, module.out_features)
        for name, module in part.named_modules()
        if name.endswith(ends)
    )
