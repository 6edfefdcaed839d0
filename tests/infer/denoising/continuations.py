"""Five samples of a smooth network, and a loop by hand that goes on with another solver after a switch."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Generator, Tensor

from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised, denoise
from tests.infer.denoising.loops import KEPT

STEPS, FULL, BEFORE, COUNT = 20, 3.0, -1.0, 5


class Network:
    """Called like a UNet, smooth in x. The embedding's first numbers: has a prompt, and which sample it is.

    The difference of the two predictions is least at timestep 700 for the first sample, later for the others,
    and falls to the end for the last. From timestep `bad[n]` on, sample n's predictions are NaN.
    """

    LEAST = (700, 560, 430, 300, -100)

    def __init__(self, bad: dict[int, float] | None = None):
        self.bad, self.rows, self.seen = bad or {}, [0] * COUNT, [[] for _ in range(COUNT)]

    def __call__(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **options) -> tuple[Tensor]:
        prompt, sample = encoder_hidden_states[:, 0, :2].view(-1, 2, 1, 1).unbind(1)
        t, number = float(t), sample.flatten().long().tolist()
        for n in number:
            self.rows[n] += 1
            self.seen[n] += [t] if self.seen[n][-1:] != [t] else []
        least = torch.tensor([float(self.LEAST[n]) for n in number]).view(-1, 1, 1, 1)
        width = 0.1 + (t - least).abs() / 1000
        output = torch.tanh(0.5 * x + 0.1 * sample.view(-1, 1, 1, 1))
        output = output + prompt.view(-1, 1, 1, 1) * width * (1 + 0.2 * torch.cos(x))
        broken = torch.tensor([t <= self.bad.get(n, -1) for n in number]).view(-1, 1, 1, 1)
        return (torch.where(broken, math.nan, output),)


def given(rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, unconditional and conditional embeddings."""
    noise = torch.randn(COUNT, 4, 4, 4, generator=Generator().manual_seed(0))[rows]
    unconditional = torch.tensor([[0.0, n, 0.0] for n in rows]).view(-1, 1, 3).repeat(1, 2, 1)
    return noise, unconditional, unconditional + torch.tensor([1.0, 0.0, 0.0])


def denoised(
    scheduler, rule: GuidanceRule, rows: list[int] | None = None, network: Network | None = None,
    steps: int = STEPS, generators: list[Generator] | None = None,
) -> Denoised:  # fmt: skip
    """Of all samples, or some; the rows that the network was given are those that are counted."""
    rows, network = list(range(COUNT)) if rows is None else rows, network or Network()
    made = denoise(network, scheduler, *given(rows), FULL, steps, [rule], generators)
    assert made.nfe.tolist() == [network.rows[n] for n in rows]
    return made


class Expected(NamedTuple):
    """One sample's own steps."""

    latents: Tensor
    timesteps: list[float]
    scales: list[float]
    left_at: int | None
    magnitudes: list[tuple[float, float, float]]  # RMS of eps_u, eps_c and their difference


Switch = Callable[[int, float, list[float]], bool]  # of step, timestep and differences so far: has it passed?


def alpha_of(timestep: float) -> float:
    """Of Stable Diffusion's noise schedule; sigma / alpha is linear between timesteps."""
    return 1 / math.hypot(1, np.interp(timestep, np.arange(1000), np.sqrt((1 - KEPT) / KEPT)))


def static(timestep: float) -> Switch:
    return lambda index, t, curve: t <= timestep


def dynamic(index: int, t: float, curve: list[float]) -> bool:
    return index >= 2 and curve[-3] > curve[-2] and curve[-1] > curve[-2]


def with_two_solvers(
    make: Callable, number: int, switch: Switch, after: int | None, generator: Generator | None = None,
    ramp: float = 0,
) -> Expected:  # fmt: skip
    """A loop over the coarse grid until the switch; then one with another solver, which takes that step.

    after: steps of the denser grid; None: the same grid, by a solver that has seen nothing.
    """
    network, (latents, unconditional, conditional) = Network(), given([number])
    drawn = {} if generator is None else {"generator": generator}
    coarse, timesteps, scales, magnitudes = make(), [], [], []
    coarse.set_timesteps(STEPS)

    def predict(solver, t: Tensor) -> tuple[Tensor, Tensor]:
        x, alpha = solver.scale_model_input(latents, t), alpha_of(t.item())
        u, c = network(x, t, unconditional)[0], network(x, t, conditional)[0]
        noises = [u, c]
        if solver.config.prediction_type == "v_prediction":
            noises = [alpha * v + math.sqrt(1 - alpha**2) * x for v in (u, c)]
        magnitudes.append(
            tuple(y.double().pow(2).mean().sqrt().item() for y in (*noises, noises[1] - noises[0]))
        )
        timesteps.append(t.item())
        return u, c

    latents = latents * coarse.init_noise_sigma
    for index, t in enumerate(coarse.timesteps):
        u, c = predict(coarse, t)
        if switch(index, t.item(), [difference for *_, difference in magnitudes]):
            break
        scales.append(BEFORE)
        latents = coarse.step(u + BEFORE * (c - u), t, latents, **drawn, return_dict=False)[0]
    else:
        return Expected(latents[0], timesteps, scales, None, magnitudes)

    fresh = make()
    if after is None:
        fresh.set_timesteps(STEPS)
        fresh.set_begin_index(index)
        grid = fresh.timesteps[index:]
    else:
        fresh.set_timesteps(after)
        grid = [t.item(), *(later for later in fresh.timesteps.tolist() if later < t)]
        if isinstance(fresh, DDIMScheduler):
            grid = torch.tensor(grid)
        else:
            fresh.set_timesteps(timesteps=grid)
            grid = fresh.timesteps
    for place, t in enumerate(grid):
        fresh.scale_model_input(latents, t)
        if place:
            u, c = predict(fresh, t)
        done = min(1, (grid[0].item() - t.item()) / ramp) if ramp else 1
        scales.append(BEFORE + done * (FULL - BEFORE))
        guided = u + scales[-1] * (c - u)
        latents = fresh.step(guided, t, latents, **drawn, return_dict=False)[0]
    return Expected(latents[0], timesteps, scales, index, magnitudes)


def taken(made: Denoised, row: int) -> Tensor:
    """Which columns of the traces are steps of this row."""
    return made.timesteps[row].isfinite()


def compare(made: Denoised, row: int, expected: Expected) -> None:
    """Latents and every trace of a row, NaN where it took no step."""
    assert torch.allclose(made.latents[row], expected.latents, rtol=1e-4, atol=1e-4)
    columns = taken(made, row)
    own = made.timesteps[row][columns].tolist()
    assert own == pytest.approx(expected.timesteps) and len(own) == len(expected.timesteps)
    assert all(a > b for a, b in zip(own, own[1:], strict=False)), "no timestep twice"
    assert made.guidance_scale[row][columns].tolist() == pytest.approx(expected.scales, abs=1e-5)
    assert made.guidance_scale[row][~columns].isnan().all()
    traces = made.unconditional_rms, made.conditional_rms, made.difference_rms
    for trace, magnitudes in zip(traces, zip(*expected.magnitudes, strict=True), strict=True):
        assert trace[row][columns].tolist() == pytest.approx(magnitudes, rel=1e-3)
        assert trace[row][~columns].isnan().all()
    assert made.nfe[row] == 2 * len(expected.timesteps)
    assert made.failed_at[row] == -1
    at = made.transition_timestep[row].item()
    if expected.left_at is None:
        assert math.isnan(at)
    else:
        assert at == pytest.approx(expected.timesteps[expected.left_at])
