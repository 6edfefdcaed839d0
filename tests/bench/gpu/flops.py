"""Floating point operations: of a training step, counted, and of the card in a second, measured."""

import time

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from infer.plan.clock import now


def flops_of_step(config: dict, batch_size: int, tokens: int, backward: bool = True) -> int:
    """Of a UNet's forward pass, and of its backward pass, for a batch.

    Matrix products, convolutions and attention count, a multiplication and an addition as two, as is usual
    for MFU (Chowdhery et al., "PaLM", 2022, appendix B); what gradient checkpointing computes again does not.
    Counted on shapes alone (device `meta`): nothing is computed, and every device has the same number.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        side = config["sample_size"]
        latents = torch.empty(batch_size, config["in_channels"], side, side)
        text = torch.empty(batch_size, tokens, config["cross_attention_dim"])
        timesteps = torch.ones(batch_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        prediction = unet(latents, timesteps, text).sample
        if backward:
            prediction.sum().backward()
    return counter.get_total_flops()


@torch.no_grad()
def peak_flops(device: str, dtype: torch.dtype, size: int, seconds: float) -> float:
    """Operations a second of a product of two matrices of size x size: 2 size^3, the best of all blocks.

    Below what the maker states, which no program reaches.
    """
    one, two = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out, products, best = torch.empty_like(one), 10, 0.0
    for _ in range(3):
        torch.matmul(one, two, out=out)
    until = time.perf_counter() + seconds
    while not best or time.perf_counter() < until:
        started = now(device)
        for _ in range(products):
            torch.matmul(one, two, out=out)
        best = max(best, products * 2 * size**3 / (now(device) - started))
    return best
