"""The initial noise of each sample optimized against memorization (Han et al., per sample)."""

from functools import partial

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.first_step import FirstStep, descend, length
from infer.denoising.hooks import Batch


class NoiseOptimization(Mitigation):
    """Lower RMS(eps_c - eps_u) at the first step by AdamW on the noise; ordinary guidance from the start.

    Han et al., NeurIPS 2025 (arXiv:2510.08625), per-sample mitigation: x_T <- AdamW(x_T, grad L), L(x_T) =
    ||eps_c - eps_u||_2, until L < l. Published l are norms: divide by sqrt(numel), and a v-model's raw norms
    also by 1 / alpha_T. Costs two evaluations with gradients an iteration. Memory: a backward pass of twice
    the batch.

    Args:
        target: a sample stops at this RMS(eps_c - eps_u), in epsilon space as in traces.parquet.
        learning_rate: of AdamW.
        iterations: at most so many.
    """

    def __init__(
        self,
        target: PositiveFloat = 0.00703,
        learning_rate: PositiveFloat = 0.01,
        iterations: PositiveInt = 1000,
    ):
        self.target, self.learning_rate, self.iterations = target, learning_rate, iterations

    def initial_noise(self, batch: Batch) -> Tensor:
        first = FirstStep(batch)

        def loss(noise: Tensor, rows: Tensor) -> Tensor:
            return length(first.difference(noise, rows))

        adam = partial(torch.optim.AdamW, lr=self.learning_rate)
        noise, _ = descend(batch, batch.noise, loss, adam, self.target, self.iterations, passes=2)
        return noise.to(batch.noise.dtype)
