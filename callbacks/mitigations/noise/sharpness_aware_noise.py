"""Initial noise where the guidance is flat (SAIL, Jeon et al.)."""

from functools import partial

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.first_step import FirstStep, descend, length
from infer.denoising.hooks import Batch
from infer.denoising.noise import standard_normal


class SharpnessAwareNoise(Mitigation):
    """Optimize the noise until the guidance is flat around it; ordinary guidance from the start.

    Jeon et al., ICML 2025 (arXiv:2412.04140), SAIL, with the loss of the released code, whose thresholds are
    published: with d(x) = eps_c(x) - eps_u(x) at the first step, L = RMS(d(x + radius d(x) / RMS(d(x)))) +
    gaussianity RMS(x), by Adam on x. (The paper writes ||s(x + delta s(x)) - s(x)||^2 + alpha ||x||^2, s =
    -d / sigma.) Published numbers are norms: divide by sqrt(numel). For v-prediction d = alpha (v_c - v_u);
    the released code's conversion turns its sign. A sample that misses the target starts again from fresh
    noise of its own seed, towards a target a little higher. Costs four evaluations with gradients an
    iteration. Memory: a backward pass of four times the batch.

    Args:
        target: a sample stops at this L.
        gaussianity: weight of RMS(x), which keeps the noise short.
        radius: how far along the guidance L looks, RMS; the noise has 1.
        learning_rate: of Adam.
        iterations: at most so many from one noise.
        restarts: fresh noises for a sample that misses the target; the last one is kept as it ends.
        slack: what each restart adds to the target.
    """

    def __init__(
        self,
        target: PositiveFloat = 0.0641,
        gaussianity: NonNegativeFloat = 0.05,
        radius: PositiveFloat = 0.0078,
        learning_rate: PositiveFloat = 0.05,
        iterations: PositiveInt = 10,
        restarts: NonNegativeInt = 1,
        slack: NonNegativeFloat = 0.00078,
    ):
        self.target, self.gaussianity, self.radius = target, gaussianity, radius
        self.learning_rate, self.iterations = learning_rate, iterations
        self.restarts, self.slack = restarts, slack

    def initial_noise(self, batch: Batch) -> Tensor:
        first, generators = FirstStep(batch), batch.own_generators("SharpnessAwareNoise")

        def loss(noise: Tensor, rows: Tensor) -> Tensor:
            _, there = first.along(noise, rows, self.radius)
            return length(there) + self.gaussianity * length(noise)

        adam = partial(torch.optim.Adam, lr=self.learning_rate)
        noise, rows = batch.noise.clone(), torch.arange(len(batch.noise))
        for round_ in range(1 + self.restarts):
            target = self.target + round_ * self.slack
            found, met = descend(batch, noise[rows], loss, adam, target, self.iterations, passes=4, rows=rows)
            noise[rows] = found.to(noise.dtype)
            rows = rows[~met]
            if round_ == self.restarts or not len(rows):
                return noise
            noise[rows] = standard_normal([generators[row] for row in rows], noise.shape[1:]).to(noise)
        return noise
