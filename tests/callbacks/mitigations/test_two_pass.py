"""The two-pass transition: the minimum that it picks, and its two passes against loops by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from torch import Generator, Tensor

from callbacks.mitigations.two_pass_transition import TwoPassTransition, chosen_minimum
from infer.denoising.loop import Denoised, denoise
from tests.callbacks.mitigations.curves import FULL, chosen_by_hand, minimum_by_hand, some_curves
from tests.infer.denoising.loops import by_hand, inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT, STEPS = 3, 10


@pytest.mark.parametrize("curve, expected", [
    ([5, 4, 3, 4, 5, 6], 2), ([5, 3, 4, 2, 4, 4], 3), ([5, 3, 4, 5, 6, 7], 1), ([6, 5, 4, 3, 2, 1], 5),
    ([1, 2, 3, 4, 5, 6], 5), ([2, 2, 2, 2, 2, 2], 5), ([5, 4, 3, 3, 4, 5], 5), ([5, 4, 3, 4, 2, 4], 2),
    ([9, 8, 7, 6, 5, 6], 4), ([5, 3, 4, 3, 4, 3, 4], 3), ([math.nan] * 6, 5),
])  # fmt: skip
def test_the_minimum_of_a_first_pass(curve: list[float], expected: int) -> None:
    assert chosen_minimum(curve) == minimum_by_hand(curve) == expected


def test_the_minimum_of_many_first_passes() -> None:
    random = np.random.default_rng(7)
    actual = set()
    for steps in range(6, 20):
        for curve in some_curves(random, 60, steps):
            actual.add(chosen_minimum(curve))
            assert chosen_minimum(curve) == minimum_by_hand(curve)
    assert {1, 2, 3, 4, 5, 8} <= actual


class Wavy:
    """Stirs the latents in a way of its own for each prompt and step, beside the random UNet if one is given.

    It counts its rows.
    """

    def __init__(self, unet: torch.nn.Module | None):
        self.unet, self.rows = unet, 0

    def __call__(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **options) -> tuple[Tensor]:
        self.rows += len(x)
        phase = encoder_hidden_states[:, 0, :2].view(-1, 2, 1, 1) * float(t) / 40
        output = torch.sin(phase[:, :1]) * x.flip(-1) + torch.sin(phase[:, 1:])
        if self.unet is None:
            return (output,)
        return (0.3 * output + self.unet(x, t, encoder_hidden_states, return_dict=False)[0],)


def one_pass(
    network: Callable, scheduler, number: int, before: float, switch: float, stochastic: bool
) -> list[Tensor]:
    """The latents of one sample before each step and after the last; full guidance from step `switch` on."""

    def guide(index: int, t: float, u: Tensor, c: Tensor) -> Tensor:
        return u + (before if index < switch else FULL) * (c - u)

    generator = Generator().manual_seed(100 + number) if stochastic else None
    return by_hand(network, scheduler, inputs(COUNT, slice(number, number + 1)), STEPS, guide, generator)


def two_passes(
    network: Callable, make: Callable, number: int, before: float, stochastic: bool
) -> tuple[Tensor, int]:
    """The final latents of one sample, and the index at which its second pass switches."""
    index = chosen_by_hand(one_pass(network, make(), number, before, math.inf, stochastic))
    return one_pass(network, make(), number, before, index, stochastic)[-1], index


@pytest.mark.parametrize("kind, before, stochastic", [
    (DDIMScheduler, -7.5, False), (DPMSolverMultistepScheduler, -7.5, False),
    (EulerDiscreteScheduler, -7.5, False), (EulerAncestralDiscreteScheduler, -7.5, True),
    (DDPMScheduler, 0.0, True),
])  # fmt: skip
def test_two_passes_are_those_of_a_loop_by_hand(
    unet: torch.nn.Module, kind: type, before: float, stochastic: bool
) -> None:
    """In a batch and alone: latents, transitions and evaluations; the first pass moves no generator.

    Were the samples' generators moved by the first pass, the second one's noise would be another than that of
    the hand-written loop, which gives both passes the same.
    """
    unet = None if stochastic else unet

    def make():
        return scheduler_of(kind, "v_prediction")

    def run(rows: slice) -> tuple[Denoised, list[Generator]]:
        network, rule = Wavy(unet), TwoPassTransition(before)
        drawn = [Generator().manual_seed(100 + n) for n in range(COUNT)[rows]]
        denoised = denoise(
            network, make(), *inputs(COUNT, rows), FULL, STEPS, [rule], drawn if stochastic else None
        )
        assert network.rows == denoised.nfe.sum()
        return denoised, drawn

    together, drawn = run(slice(None))
    timesteps, indices = together.timesteps[0].tolist(), []
    for number in range(COUNT):
        latents, index = two_passes(Wavy(unet), make, number, before, stochastic)
        indices.append(index)
        for denoised, position in ((together, number), (run(slice(number, number + 1))[0], 0)):
            assert denoised.transition_timestep[position] == timesteps[index]
            assert denoised.guidance_scale[position].tolist() == [before] * index + [FULL] * (STEPS - index)
            assert torch.allclose(denoised.latents[position], latents[0], atol=1e-4, rtol=1e-4)
            cost = 1 if before == 0 else 2
            assert denoised.nfe[position] == cost * STEPS + cost * index + 2 * (STEPS - index)
        alone = Generator().manual_seed(100 + number)
        for _ in range(STEPS if stochastic else 0):
            torch.randn(1, 4, 8, 8, generator=alone)
        assert torch.equal(drawn[number].get_state(), alone.get_state()), "the draws of one pass"
    assert len(set(indices)) > 1, indices
