"""A fused LoRA switched off for a while: the base model's predictions without a second set of weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Factors = dict[str, dict[str, tuple[Tensor, Tensor]]]  # part -> layer -> A and scale B


def factors_of(pipe: Any, scale: float) -> Factors:
    """The factors of a LoRA that is loaded and not fused yet; scale alpha / rank is multiplied into B."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    factors: Factors = {"unet": {}, "text_encoder": {}}
    for part, layers in factors.items():
        for name, layer in getattr(pipe, part).named_modules():
            if isinstance(layer, BaseTunerLayer):
                for adapter, down in layer.lora_A.items():
                    up = layer.lora_B[adapter].weight.detach() * (scale * layer.scaling[adapter])
                    layers[name] = down.weight.detach().clone(), up
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
    handles = []
    try:
        for part, layers in pipe.lora_factors.items():
            model = getattr(pipe, part)
            for name, factors in layers.items():
                layer = model.get_submodule(name)
                layers[name] = down, up = tuple(factor.to(layer.weight) for factor in factors)  # once
                handles.append(layer.register_forward_hook(partial(subtract, lora_path(layer, down, up))))
        yield pipe
    finally:
        for handle in handles:
            handle.remove()


def lora_path(layer: nn.Module, down: Tensor, up: Tensor) -> Callable[[Tensor], Tensor]:
    """x -> B (A x), of a linear layer or a convolution."""
    if isinstance(layer, nn.Conv2d):
        options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        return lambda x: F.conv2d(F.conv2d(x, down, **options), up)
    return lambda x: F.linear(F.linear(x, down), up)


def subtract(path: Callable[[Tensor], Tensor], layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output - path(inputs[0])
