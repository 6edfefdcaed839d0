"""Write a pipeline as one file, in the layout of the original Stable Diffusion code."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "final_layer_norm": "ln_final",
}


def unet_key(key: str, layers: int, attentive: set[str]) -> str:
    """The original name: blocks are counted through, each with its resnet, its attention and its resampling.

    `layers` is the UNet's layers_per_block; `attentive` names the diffusers blocks with attention.
    """
    module, kind = key.rsplit(".", 1)
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{kind}"
    block, part, number, rest = re.fullmatch(r"(\w+_blocks?(?:\.\d+)?)\.(\w+)\.(\d+)\.(.+)", key).groups()
    number = int(number)
    if part == "resnets":
        name, kind = rest.rsplit(".", 1)
        rest = f"{UNET_RESNET[name]}.{kind}"
    if block == "mid_block":
        return f"middle_block.{1 if part == 'attentions' else 2 * number}.{rest}"
    stage, index = block.split(".")
    first = int(index) * (layers + 1)
    if stage == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{1 + first + layers}.0.{rest.replace('conv', 'op')}"
        return f"input_blocks.{1 + first + number}.{0 if part == 'resnets' else 1}.{rest}"
    if part == "upsamplers":
        return f"output_blocks.{first + layers}.{2 if block in attentive else 1}.{rest}"
    return f"output_blocks.{first + number}.{0 if part == 'resnets' else 1}.{rest}"


def original_unet(unet: Any) -> dict[str, Tensor]:
    weights, layers = unet.state_dict(), unet.config.layers_per_block
    attentive = {key.split(".attentions")[0] for key in weights if ".attentions." in key}
    return {unet_key(key, layers, attentive): weight for key, weight in weights.items()}


def original_vae(vae: Any) -> dict[str, Tensor]:
    """Up blocks are counted from the other end, and attention consists of 1x1 convolutions."""
    last, original = len(vae.config.block_out_channels) - 1, {}
    for key, weight in vae.state_dict().items():
        key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
        if "mid_block.attentions.0." in key:
            name, kind = key.split("mid_block.attentions.0.")[1].rsplit(".", 1)
            key = f"{key.split('.')[0]}.mid.attn_1.{VAE_ATTENTION[name]}.{kind}"
            weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        key = re.sub(r"down_blocks\.(\d)", r"down.\1", key)
        key = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{last - int(match[1])}", key)
        key = key.replace("resnets", "block")
        key = key.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        original[key] = weight
    return original


def original_text_encoder(text_encoder: Any) -> dict[str, Tensor]:
    """As SD 1 has it: transformers' own names, and a buffer that is no weight."""
    weights = {key.removeprefix("text_model."): weight for key, weight in text_encoder.state_dict().items()}
    tokens = torch.arange(text_encoder.config.max_position_embeddings)[None]
    weights["embeddings.position_ids"] = tokens
    return {f"transformer.text_model.{key}": weight for key, weight in weights.items()}


def open_clip_text_encoder(text_encoder: Any) -> dict[str, Tensor]:
    """As SD 2 has it: OpenCLIP's names, query, key and value in one, and parts of its image encoder."""
    weights = {key.removeprefix("text_model."): weight for key, weight in text_encoder.state_dict().items()}
    original = {
        "logit_scale": torch.tensor(4.6),
        "text_projection": torch.eye(text_encoder.config.hidden_size),
    }
    for key, weight in weights.items():
        if ".q_proj." in key:
            weight = torch.cat(
                [weights[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            )
        for old, new in OPEN_CLIP.items():
            key = key.replace(old, new)
        if ".q_proj." in key:
            before, kind = key.split("q_proj.")
            original[f"{before}in_proj_{kind}"] = weight
        elif ".k_proj." not in key and ".v_proj." not in key:
            original[key] = weight
    return {f"model.{key}": weight for key, weight in original.items()}


def write_single_file(pipe: Any, path: Path, open_clip: bool = False) -> Path:
    """The pipeline's weights in one .safetensors file, text encoder as in SD 1 or (`open_clip`) SD 2."""
    text_encoder = open_clip_text_encoder if open_clip else original_text_encoder
    parts = {
        "model.diffusion_model": original_unet(pipe.unet),
        "first_stage_model": original_vae(pipe.vae),
        "cond_stage_model": text_encoder(pipe.text_encoder),
    }
    weights = {f"{name}.{key}": weight for name, part in parts.items() for key, weight in part.items()}
    weights["alphas_cumprod"] = (
        pipe.scheduler.alphas_cumprod
    )  # the original module's buffers are in there too
    save_file({key: weight.clone().contiguous() for key, weight in weights.items()}, path)
    return path
