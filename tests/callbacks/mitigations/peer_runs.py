"""What the tests of the peers share: runs of the tiny pipeline under some rules, and one sample at a time."""

from collections.abc import Callable
from typing import Any

import torch

from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised
from infer.denoising.sampling import denoise_requests
from tests.infer.denoising.loops import requests

CPU, STEPS, SCALE = torch.device("cpu"), 10, 7.5  # timesteps 901, 801, ... 1


def run(pipe: Any, *rules: GuidanceRule, count: int = 3, rows: slice = slice(None)) -> Denoised:
    return denoise_requests(pipe, CPU, requests(count)[rows], 16, SCALE, STEPS, rules=rules)


def assert_rows_are_independent(pipe: Any, make: Callable[[], list[GuidanceRule]]) -> Denoised:
    """A batch of 3 is three batches of 1, in latents and in cost; the batch's run."""
    together = run(pipe, *make())
    for number in range(3):
        alone = run(pipe, *make(), rows=slice(number, number + 1))
        assert torch.allclose(alone.latents[0], together.latents[number], atol=1e-4)
        assert alone.nfe[0] == together.nfe[number]
        assert alone.gradient_passes[0] == together.gradient_passes[number]
    return together
