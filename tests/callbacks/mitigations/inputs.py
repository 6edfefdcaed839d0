"""What the tests of rules that change the inputs share: batches before the first step, and toy models."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infer.denoising.hooks import Batch, GuidanceRule
from infer.denoising.loop import change_inputs, prepare
from infer.denoising.schedulers import noise_levels
from tests.infer.denoising.loops import inputs, scheduler_of

SEEDS = [11, 12, 13]


def changed(
    model: Any, *rules: GuidanceRule, rows: Sequence[int] = (0, 1, 2), prediction: str = "epsilon",
    given: tuple[Tensor, Tensor, Tensor] | None = None, steps: int = 10, dtype: torch.dtype = torch.float32,
) -> Batch:  # fmt: skip
    """Some rows of a batch as the rules leave it before the first step."""
    scheduler, rows = scheduler_of(prediction=prediction), list(rows)
    prepare(scheduler, 7.5, steps, rules)
    given = [x[rows].to(dtype) for x in given or inputs(3)]
    batch = Batch(model, scheduler, *given, 7.5, [SEEDS[row] for row in rows])
    with torch.no_grad():
        change_inputs(batch, rules)
    return batch


class Linear:
    """Called like a UNet: predicts 0 without a prompt (an embedding of zeros), and weight * A x with one.

    The weight is the embedding's mean; A is a matrix on the flattened latents.
    """

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    def __call__(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **options: Any) -> tuple[Tensor]:
        weight = encoder_hidden_states.mean((1, 2)).view(-1, 1)
        return ((weight * (x.flatten(1) @ self.matrix.T.to(x))).view_as(x),)


class AsVelocity:
    """A model of noise as one of v, at the first step of `changed`: v = (eps - sigma x) / alpha."""

    def __init__(self, model: Any, steps: int = 10):
        scheduler = scheduler_of()
        scheduler.set_timesteps(steps)
        self.model, (self.alpha, self.sigma) = model, noise_levels(scheduler)[0]

    def __call__(self, x: Tensor, t: Tensor, **options: Any) -> tuple[Tensor]:
        return ((self.model(x, t, **options)[0] - self.sigma * x) / self.alpha,)


def linear_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Noise (3, 4, 8, 8), an embedding of zeros and one of ones."""
    noise = inputs(3)[0]
    return noise, torch.zeros(3, 2, 3), torch.ones(3, 2, 3)


def matrix(seed: int = 5, width: int = 256) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(width, width, generator=random) / width**0.5
