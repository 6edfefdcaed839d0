"""The frozen parts of a pipeline: images to latents, captions to embeddings, and digests of their weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data.files import bytes_of, digest
from infer.denoising.sampling import embed
from train.dataset.cache import key_of

PIXELS = 2**21  # encoded at a time: 32 images of 256 px


def encode_images(pipe: Any, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """uint8 (B, 3, H, W) -> mean and standard deviation of the latents, in the UNet's scale and float32.

    The number of images at a time keeps the autoencoder's widest layers at about 1 GB at any resolution.
    """
    vae, scale = on_device(pipe.vae, device), pipe.vae.config.scaling_factor
    means, stds = [], []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for part in pixels.to(device).split(max(1, PIXELS // (pixels.shape[-1] * pixels.shape[-2]))):
            posterior = vae.encode(part.float() / 127.5 - 1).latent_dist
            means.append(posterior.mean * scale)
            stds.append(posterior.std * scale)
    return torch.cat(means), torch.cat(stds)


def encode_prompts(pipe: Any, prompts: list[str], device: torch.device) -> Tensor:
    """Captions -> (B, tokens, width) in float32, as the pipeline itself encodes them."""
    on_device(pipe.text_encoder, device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return embed(pipe, prompts, device)


def on_device(part: nn.Module, device: torch.device) -> nn.Module:
    """The part on the device; moved only if it is elsewhere, which is quicker than `to`."""
    return part if next(part.parameters()).device == device else part.to(device)


def vae_key(pipe: Any) -> str:
    """Changes with the autoencoder's weights and config, so that no latents of another one are used."""
    return key_of(weights_digest(pipe.vae), settings(pipe.vae.config))


def text_key(pipe: Any, texts: list[str]) -> str:
    """Changes with the text encoder, and with the tokens of these texts."""
    tokenizer, config = pipe.tokenizer, settings(pipe.text_encoder.config.to_dict())
    length = tokenizer.model_max_length
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="np")
    ids = digest(tokens.input_ids.tobytes(), tokens.attention_mask.tobytes())
    return key_of(weights_digest(pipe.text_encoder), config, ids)


def settings(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The config without its folder (`_name_or_path`) and writer: a model may be moved."""
    return sorted((key, value) for key, value in config.items() if not key.startswith(("_", "transformers_")))


def weights_digest(part: nn.Module) -> str:
    """SHA-256 of the weights, without those of a LoRA."""
    weights = (weight for name, weight in part.state_dict().items() if "lora_" not in name)
    return digest(*(digest(bytes_of(weight)) for weight in weights))
