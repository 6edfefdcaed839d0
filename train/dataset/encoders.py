"""The frozen parts of a pipeline: images to latents, captions to embeddings, and a name for their weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data.files import bytes_of, digest
from infer.models.weights import no_warnings
from train.dataset.cache import key_of

PIXELS = 2**21  # that are encoded at a time: 32 images of 256 px


def encode_images(pipe: Any, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """uint8 (B, 3, H, W) -> mean and deviation of the latents, in the UNet's scale and float32.

    So many images at a time that the autoencoder's widest layers stay at about 1 GB, whatever the resolution.
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


def text_key(pipe: Any, texts: list[str]) -> str:
    """The same of the text encoder, and of what the tokenizer makes of these texts."""
    tokenizer, config = pipe.tokenizer, settings(pipe.text_encoder.config.to_dict())
    length = tokenizer.model_max_length
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="np")
    ids = digest(tokens.input_ids.tobytes(), tokens.attention_mask.tobytes())
    return key_of(weights_key(pipe.text_encoder), config, ids)


def settings(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Without the folder that it was read from (`_name_or_path`) and who wrote it: a model may be moved."""
    return sorted((key, value) for key, value in config.items() if not key.startswith(("_", "transformers_")))


def weights_key(part: nn.Module) -> str:
    return digest(*(digest(bytes_of(weight)) for weight in part.state_dict().values()))
