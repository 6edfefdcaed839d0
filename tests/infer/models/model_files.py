"""Models and LoRAs on disk that differ in every weight, comparisons of weights, and expected failures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from infer.models.pipeline import pipeline_class
from tests.infer.models.single_file import unet_key

PARTS = ("unet", "vae", "text_encoder")
UNET_LAYERS = [  # each kind of layer that LoRAs are made for
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.attentions.1.proj_in",
    "down_blocks.1.resnets.0.conv1",
    "up_blocks.0.upsamplers.0.conv",
]
TEXT_LAYERS = [f"encoder.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")]


def disturbed(pipe: Any) -> Any:
    """No two weights alike: norms start as ones, biases as zeros, and exchanged ones would not show."""
    for name in PARTS:
        for weight in getattr(pipe, name).parameters():
            weight.data += 0.02 * torch.randn_like(weight)
    return pipe


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def weights(pipe: Any) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": weight.clone()
        for name in PARTS
        for key, weight in getattr(pipe, name).state_dict().items()
    }


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(
            ours[key], theirs[key], msg=lambda text, key=key: f"{key}: {text}", **tolerance
        )


def image(pipe: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    return np.asarray(pipe("red square", generator=generator, num_inference_steps=3).images[0])


def failure(kind: type[Exception], match: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        call(*args, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def changed(source: Path, path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> str:
    save_file(change(load_file(source)), path)
    return str(path)


def random_layer(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A down, B up, and what they add to the weight."""
    out, into, *kernel = weight.shape
    down = torch.randn(rank, into, *kernel, generator=generator)
    up = torch.randn(out, rank, *[1] * len(kernel), generator=generator)
    return down, up, (up.flatten(1) @ down.flatten(1)).view_as(weight)


def kohya_lora(
    pipe: Any, path: Path, alpha: float, text: bool = True, original: bool = False
) -> dict[str, Tensor]:
    """Write a LoRA of rank 2 as kohya's scripts do, blocks under the original names or not; what it adds."""
    generator, tensors, added = torch.Generator().manual_seed(5), {}, {}
    layers = [("unet", name) for name in UNET_LAYERS]
    layers += [("text_encoder", name) for name in TEXT_LAYERS if text]
    for part, name in layers:
        weight = getattr(pipe, part).get_parameter(f"{name}.weight")
        down, up, product = random_layer(weight, 2, generator)
        if part == "text_encoder":
            key = "lora_te_text_model_" + name.replace(".", "_")
        elif original:
            old = unet_key(f"{name}.weight", 1, {"down_blocks.1", "up_blocks.0"}).removesuffix(".weight")
            key = "lora_unet_" + old.replace(".", "_")
        else:
            key = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
        added[f"{part}.{name}.weight"] = alpha / 2 * product
    save_file(tensors, path)
    return added


def diffusers_lora(pipe: Any, folder: Path, alpha: int, metadata: bool) -> dict[str, Tensor]:
    """Write a LoRA of rank 2 by peft and diffusers, as diffusers' training scripts do; what it adds."""
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["to_q", "to_out.0", "proj_in"])
    pipe.unet.add_adapter(config)
    generator, added = torch.Generator().manual_seed(6), {}
    for name, module in pipe.unet.named_modules():
        if hasattr(module, "lora_A"):
            down, up, product = random_layer(module.base_layer.weight, 2, generator)
            module.lora_A["default"].weight.data = down
            module.lora_B["default"].weight.data = up
            added[f"unet.{name}.weight"] = product * (alpha / 2 if metadata else 1)
    about = {"unet_lora_adapter_metadata": config.to_dict()} if metadata else {}
    pipeline_class().save_lora_weights(folder, get_peft_model_state_dict(pipe.unet), **about)
    return added


def sum_of(before: dict[str, Tensor], added: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    assert added.keys() <= before.keys()
    return before | {key: before[key] + scale * change for key, change in added.items()}
