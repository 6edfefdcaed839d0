"""Train low-rank changes of the attention layers (LoRA, Hu et al. 2021) through peft, and write them."""

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from infer.models.lora import LORA_FILE

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
"""Attention projections, as diffusers' UNet names them, then as transformers' text encoder does."""


def add_lora(part: nn.Module, rank: int, alpha: float | None) -> None:
    """Freeze the part and add trainable layers: W x becomes W x + (alpha / rank) B A x.

    A is (rank, in) and random, B is (out, rank) and zero: the part's output is unchanged at first. Both are
    in float32, whatever W is in. They are all that needs gradients afterwards.

    Args:
        part: UNet2DConditionModel or transformers' CLIPTextModel, changed in place.
        rank: of B A, at least 1.
        alpha: numerator of the scale, above 0; None: rank, a scale of 1.

    Raises ValueError for a rank or alpha out of range, for a part without attention projections and for one
    that has a LoRA already.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig, inject_adapter_in_model

    if has_lora(part):
        raise ValueError(f"{type(part).__name__} has a LoRA already: give a part without one")
    if rank < 1:
        raise ValueError(f"the LoRA's rank must be at least 1, not {rank}")
    if alpha is not None and not 0 < alpha < math.inf:
        raise ValueError(f"the LoRA's alpha must be above 0, not {alpha}; null makes it the rank")
    names = [name for name, _ in part.named_modules()]
    layers = [layer for layer in ATTENTION if any(name.endswith(f".{layer}") for name in names)]
    if not layers:
        raise ValueError(
            f"{type(part).__name__} has no attention projection ({', '.join(ATTENTION)}) to add a LoRA to: "
            "train it whole"
        )
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=layers)
    # not part.add_adapter: transformers' refuses the peft of its own day, though this is all it does
    inject_adapter_in_model(config, part)  # freezes the rest
    cast_training_params(part)


def save_lora(folder: Path, unet: nn.Module, text_encoder: nn.Module | None = None) -> None:
    """Write `pytorch_lora_weights.safetensors`, as `infer.models.lora` and `load_lora_weights` read it.

    alpha is in the file's metadata, where diffusers looks for it. What does not read that takes it to be the
    rank.

    Args:
        folder: made if it is missing.
        unet: with layers of `add_lora`.
        text_encoder: left out if it has no such layers.

    Raises ValueError when the UNet has no LoRA.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY

    if not has_lora(unet):
        raise ValueError(f"{type(unet).__name__} has no LoRA to save: call add_lora first")
    parts = {"unet": unet}
    if text_encoder is not None and has_lora(text_encoder):
        parts["text_encoder"] = text_encoder
    tensors, about = {}, {}
    for name, part in parts.items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in lora_tensors(part).items()}
        about |= {f"{name}.{key}": value for key, value in lora_config(part).items()}
    folder.mkdir(parents=True, exist_ok=True)
    # diffusers' own writer adds a second entry, and safetensors writes several in random order
    metadata = {LORA_ADAPTER_METADATA_KEY: json.dumps(about, sort_keys=True)}
    save_file(tensors, folder / LORA_FILE, metadata)


def has_lora(part: nn.Module) -> bool:
    return bool(getattr(part, "peft_config", None))


def lora_tensors(part: nn.Module) -> dict[str, Tensor]:
    """A and B of each layer, under the names that files have: a text encoder's start with `text_model.`.

    transformers 5 has dropped that level, diffusers takes both, and what else reads LoRAs expects it.
    """
    from peft.utils import get_peft_model_state_dict
    from transformers import PreTrainedModel

    # embeddings have no LoRA; to find that out by itself, peft would ask the Hub
    tensors = get_peft_model_state_dict(part, save_embedding_layers=False)
    prefix = "text_model." if isinstance(part, PreTrainedModel) else ""
    return {prefix + key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def lora_config(part: nn.Module) -> dict[str, Any]:
    """The adapter's configuration, the same in every process: sets are sorted."""
    config = part.peft_config["default"].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
