"""Optimizers by name."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

DEVICES_8BIT = ("cpu", "cuda", "xpu")
"""Where bitsandbytes 0.50 has kernels for 8-bit states; AMD's cards are `cuda` too."""


def make_optimizer(
    name: Literal["adamw", "adamw8bit"],
    parameters: Iterable[nn.Parameter],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    fused: bool = True,
) -> Optimizer:
    """AdamW over the parameters, which are on their device already.

    adamw: PyTorch's, 8 bytes of state a parameter. adamw8bit: bitsandbytes' (Dettmers et al. 2021), 2 bytes a
    parameter, for tensors of 4096 entries or more; smaller ones as adamw. Raises ValueError for adamw8bit
    where bitsandbytes is not installed, or has no kernels for the device.
    """
    # plain numbers: the parser's own types have no place in a checkpoint
    lr, betas, weight_decay = float(lr), (float(betas[0]), float(betas[1])), float(weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, betas=betas, weight_decay=weight_decay, fused=fused)
    kind = adamw8bit()
    parameters = list(parameters)
    others = {parameter.device.type for parameter in parameters} - {*DEVICES_8BIT}
    if others:
        raise ValueError(
            f"optimizer adamw8bit does not run on {', '.join(sorted(others))}, only on "
            f"{', '.join(DEVICES_8BIT)}: give adamw"
        )
    return kind(parameters, lr, betas=betas, weight_decay=weight_decay)


def adamw8bit() -> type[Optimizer]:
    """bitsandbytes' class; ValueError where it is not installed."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            "optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or give adamw"
        ) from error
    return AdamW8bit
