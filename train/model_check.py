"""Whether a pipeline can be trained and sampled from, known from its configs alone."""

from collections.abc import Mapping
from typing import Any

UNSET_LENGTH = 10**6  # a tokenizer without model_max_length has one of 1e30


def config_of(pipe: Any) -> dict[str, Mapping[str, Any]]:
    """The configs of a loaded pipeline's parts, as `train.plan.sizes.read_configs` reads them from files."""
    return {
        "unet": pipe.unet.config,
        "vae": pipe.vae.config,
        "text_encoder": pipe.text_encoder.config.to_dict(),
        "tokenizer": {"model_max_length": pipe.tokenizer.model_max_length},
        "scheduler": pipe.scheduler.config,
    }


def token_count(tokenizer: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> int:
    """Tokens of a padded caption."""
    length = tokenizer.get("model_max_length", UNSET_LENGTH)
    return int(length) if length < UNSET_LENGTH else text_encoder.get("max_position_embeddings", 77)


def check_model(
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    text_encoder: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
) -> None:
    """Raise ValueError for a model that takes more than a caption, or whose parts do not fit each other."""
    latents = vae.get("latent_channels", 4)
    channels = {unet.get("in_channels", 4), unet.get("out_channels", 4)}
    if channels != {latents}:
        raise ValueError(
            f"the UNet has {sorted(channels)} channels and the VAE {latents}: give a text-to-image model, "
            "not one for inpainting, depth or upscaling"
        )
    for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if unet.get(name):
            raise ValueError(f"the UNet needs more than a caption ({name} {unet[name]!r}): give SD 1 or 2")
    width, hidden = unet.get("cross_attention_dim", 1280), text_encoder.get("hidden_size", 512)
    if isinstance(width, int) and width != hidden:
        raise ValueError(f"the UNet takes text embeddings of width {width}, the text encoder gives {hidden}")
    tokens, positions = token_count(tokenizer, text_encoder), text_encoder.get("max_position_embeddings", 77)
    if tokens > positions:
        raise ValueError(
            f"the tokenizer pads captions to {tokens} tokens, and the text encoder takes {positions}: set "
            f"model_max_length in tokenizer/tokenizer_config.json to {positions}"
        )
