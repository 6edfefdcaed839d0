"""Train low-rank changes of the attention layers (LoRA, Hu et al. 2021) through peft, and write them."""

from pathlib import Path

from torch import Tensor, nn

from infer.models.pipeline import pipeline_class

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
"""Attention projections, as diffusers' UNet names them, then as transformers' text encoder does."""


def add_lora(part: nn.Module, rank: int, alpha: float | None) -> None:
    """Freeze the part and add trainable layers: W x becomes W x + (alpha / rank) B A x.

    A is (rank, in) and random, B is (out, rank) and zero, so the part's output is unchanged at first. Both
    are float32, whatever W is, and nothing else needs gradients afterwards.

    Args:
        part: UNet2DConditionModel or transformers' CLIPTextModel, changed in place.
        rank: of B A, at least 1.
        alpha: numerator of the scale, above 0; None: rank, a scale of 1.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, _ in part.named_modules()]
    layers = [layer for layer in ATTENTION if any(name.endswith(f".{layer}") for name in names)]
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=layers)
    # part.add_adapter does the same, but transformers' refuses the installed peft
    inject_adapter_in_model(config, part)  # freezes the rest
    cast_training_params(part)


def save_lora(folder: Path, unet: nn.Module, text_encoder: nn.Module | None = None) -> None:
    """Write `pytorch_lora_weights.safetensors`, as diffusers' `load_lora_weights` and other tools read it.

    B is written times alpha / rank, so that readers that know no alpha apply the LoRA at the same strength.

    Args:
        folder: created where it is missing.
        unet: with layers of `add_lora`.
        text_encoder: left out if it has no such layers.
    """
    text = text_encoder if text_encoder is not None and has_lora(text_encoder) else None
    pipeline_class().save_lora_weights(
        folder, unet_lora_layers=lora_tensors(unet), text_encoder_lora_layers=text and lora_tensors(text)
    )


def has_lora(part: nn.Module) -> bool:
    return bool(getattr(part, "peft_config", None))


def lora_tensors(part: nn.Module) -> dict[str, Tensor]:
    """A and alpha / rank B of each layer, under the names that files have.

    A text encoder's start with `text_model.`: transformers 5 has dropped that level, diffusers takes both,
    and other readers of LoRAs expect it.
    """
    from peft.utils import get_peft_model_state_dict
    from transformers import PreTrainedModel

    # embeddings have no LoRA; peft would ask the Hub for the vocabulary's size
    tensors = get_peft_model_state_dict(part, save_embedding_layers=False)
    config = part.peft_config["default"]
    prefix = "text_model." if isinstance(part, PreTrainedModel) else ""
    return {
        prefix + key.removeprefix(prefix): tensor * (config.lora_alpha / config.r if "lora_B" in key else 1)
        for key, tensor in tensors.items()
    }
