"""A model's parts without weights, from its configs alone: nothing is downloaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from data.files import read_object
from infer.denoising.sampling import resolution_of
from infer.models.weights import is_file_name, is_hub_id
from train.lora_layers import add_lora
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
        unet, text_encoder, vae: number of parameters.
        trained: entries of each trained tensor.
        channels: of the latents.
        factor: pixels per latent entry, in height and width.
        sample_size: height and width of the latents that the UNet was trained with.
        tokens, width: shape of a caption's embedding.
    """

    unet: int
    text_encoder: int
    vae: int
    trained: list[int]
    channels: int
    factor: int
    sample_size: int
    tokens: int
    width: int

    def latent(self, resolution: int | None) -> tuple[int, int, int]:
        """Shape (C, h, w) of an image's latent; ValueError for a resolution that the model cannot take."""
        unet = SimpleNamespace(config=SimpleNamespace(sample_size=self.sample_size))
        pipe = SimpleNamespace(vae_scale_factor=self.factor, unet=unet)
        height = resolution_of(pipe, resolution) // self.factor
        return self.channels, height, height


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
    configs = {part: read_object(Path(path)) for part, path in paths.items()}
    if broken := [str(paths[part]) for part, config in configs.items() if not config]:
        raise ValueError(f"{broken[0]} is no JSON, or empty: download or export the model again")
    return configs


def sizes_of(configs: Configs, train_text_encoder: bool = False, lora_rank: int | None = None) -> Sizes:
    """Sizes of the models that the configs describe, with the parameters that would be trained.

    They are counted on the meta device: files of weights may hold buffers, or one model several times.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text_config = CLIPTextConfig.from_dict(configs["text_encoder"])
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(configs["unet"])
        vae = AutoencoderKL.from_config(configs["vae"])
        text_encoder = CLIPTextModel(text_config)
        counts = [sum(p.numel() for p in part.parameters()) for part in (unet, text_encoder, vae)]
        trained = [unet, text_encoder] if train_text_encoder else [unet]
        if lora_rank:
            for part in trained:
                add_lora(part, lora_rank, None)
    return Sizes(
        *counts,
        trained=[p.numel() for part in trained for p in part.parameters() if p.requires_grad],
        channels=vae.config.latent_channels,
        factor=2 ** (len(vae.config.block_out_channels) - 1),
        sample_size=unet.config.sample_size,
        tokens=token_count(configs["tokenizer"], configs["text_encoder"]),
        width=text_config.hidden_size,
    )
