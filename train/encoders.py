"""The frozen parts of a pipeline: images to latents, captions to embeddings, and a name for their weights."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data.weights import no_warnings
from train.cache import key_of


def encode_images(pipe: Any, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """uint8 (B, 3, H, W) -> mean and deviation of the latents, in the UNet's scale and float32."""
    vae = on_device(pipe.vae, device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        posterior = vae.encode(pixels.to(device).float() / 127.5 - 1).latent_dist
        return posterior.mean * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor


def encode_prompts(pipe: Any, prompts: list[str], device: torch.device) -> Tensor:
    """Captions -> (B, tokens, width), as the pipeline itself would, in float32."""
    on_device(pipe.text_encoder, device)
    with no_warnings(), torch.no_grad(), torch.autocast(device.type, enabled=False):
        return pipe.encode_prompt(prompts, device, 1, do_classifier_free_guidance=False)[0]


def on_device(part: nn.Module, device: torch.device) -> nn.Module:
    """The part there; asking costs less than moving what is there already."""
    return part if next(part.parameters()).device == device else part.to(device)


def vae_key(pipe: Any) -> str:
    """Changes with weights and config: latents made by another autoencoder are never used."""
    return key_of(weights_key(pipe.vae), settings(pipe.vae.config))


def text_key(pipe: Any) -> str:
    """The same of text encoder and tokenizer."""
    vocabulary = sorted(pipe.tokenizer.get_vocab().items())
    config = settings(pipe.text_encoder.config.to_dict())
    return key_of(weights_key(pipe.text_encoder), config, pipe.tokenizer.model_max_length, vocabulary)


def settings(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Without the folder that it was read from (`_name_or_path`) and who wrote it: a model may be moved."""
    return sorted((key, value) for key, value in config.items() if not key.startswith(("_", "transformers_")))


def weights_key(part: nn.Module) -> str:
    digest = hashlib.sha256()
    for weight in part.state_dict().values():
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
