"""A fused LoRA switched off for a while: the base model's predictions without a second set of weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infer.models.forwards import replaced_forwards

Factors = dict[nn.Module, tuple[Tensor, Tensor]]  # layer -> A and scale B


def factors_of(pipe: Any, scale: float) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """By part and layer, of a LoRA that is loaded and not fused yet: A and scale alpha / rank B."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    factors = {}
    for part in ("unet", "text_encoder"):
        for name, layer in getattr(pipe, part).named_modules():
            if isinstance(layer, BaseTunerLayer):
                for adapter, down in layer.lora_A.items():
                    up = layer.lora_B[adapter].weight.detach() * (scale * layer.scaling[adapter])
                    factors[part, name] = down.weight.detach().clone(), up
    return factors


def has_factors(pipe: Any) -> bool:
    """Whether the pipeline was loaded with a LoRA, by `infer.models.pipeline.load_pipeline`."""
    return getattr(pipe, "lora_factors", None) is not None


@contextmanager
def without_lora(pipe: Any) -> Iterator[Any]:
    """Within the block UNet and text encoder answer as before the LoRA: y = (W + B A) x - B (A x).

    The fused weights stay as they are, so nothing is left of rounding afterwards; within the block the
    answers are the base model's but for rounding. It costs the memory of the factors and two thin products
    a layer.
    """
    factors: Factors = pipe.lora_factors
    for layer, pair in factors.items():
        factors[layer] = tuple(factor.to(layer.weight) for factor in pair)  # to where the model is now
    with replaced_forwards({layer: partial(base_forward, layer, *pair) for layer, pair in factors.items()}):
        yield pipe


def base_forward(layer: nn.Module, down: Tensor, up: Tensor, x: Tensor) -> Tensor:
    """y of a linear layer or a convolution without its LoRA."""
    y = type(layer).forward(layer, x)
    if isinstance(layer, nn.Conv2d):
        options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        return y - F.conv2d(F.conv2d(x, down, **options), up)
    low = F.linear(x.flatten(0, -2), down)
    return torch.addmm(y.flatten(0, -2), low, up.t(), alpha=-1).view(y.shape)
