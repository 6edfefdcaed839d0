"""Given curves through the loop, and references that read like the rules' definitions."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from callbacks.mitigations.dynamic_transition import DynamicTransition
from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised, denoise
from tests.infer.denoising.loops import scheduler_of

FULL = 7.5


class Curves:
    """Called like a UNet: its k-th call predicts 0 without a prompt, and row r's curve[k] with one."""

    def __init__(self, curves: Sequence[Sequence[float]]):
        self.curves, self.calls, self.rows = torch.tensor(curves, dtype=torch.float32), 0, 0

    def __call__(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **options) -> tuple[Tensor]:
        number = encoder_hidden_states[:, 0, 0].long()
        difference = self.curves[(number - 1).clamp(min=0), self.calls]
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return (torch.where(number > 0, difference, 0.0).view(-1, 1, 1, 1).expand_as(x),)


def through_the_loop(
    curves: Sequence[Sequence[float]], rule: GuidanceRule, scheduler=None, steps: int | None = None
) -> Denoised:
    """As many samples as curves, all from the same noise."""
    count, scheduler = len(curves), scheduler or scheduler_of()
    conditional = torch.arange(1.0, count + 1).view(-1, 1, 1).expand(-1, 2, 3)
    network = Curves(curves)
    denoised = denoise(
        network, scheduler, torch.ones(count, 1, 2, 2), torch.zeros_like(conditional), conditional, FULL,
        steps or len(curves[0]), [rule],
    )  # fmt: skip
    assert network.calls == len(scheduler.timesteps) and network.rows == denoised.nfe.sum()
    return denoised


def minimum_of(
    curve: Sequence[Fraction], smoothing: int = 1, prominence: Fraction = Fraction(0), patience: int = 1
) -> int | None:
    """The step at which the rule fires: the first that has `patience` steps above a minimum behind it."""
    smooth = {i: sum(curve[i - smoothing + 1 : i + 1]) / smoothing for i in range(smoothing - 1, len(curve))}
    for step in smooth:
        lowest = step - patience
        if lowest - 1 not in smooth or not smooth[lowest - 1] > smooth[lowest]:
            continue
        if not all(smooth[later] > smooth[lowest] for later in range(lowest + 1, step + 1)):
            continue
        highest = max(smooth[i] for i in smooth if i < lowest)
        if highest - smooth[lowest] >= prominence * highest:
            return step
    return None


def expected_of(curve: Sequence[float], timesteps: Sequence[float], rule: DynamicTransition) -> tuple:
    """(transition timestep, None if it never comes or inf at the gate; each step's scale) by the options."""
    exact = [Fraction(value) for value in curve]
    step = minimum_of(exact, rule.smoothing, Fraction(rule.prominence), rule.patience)
    if rule.fallback_timestep is not None:
        late = next(i for i, t in enumerate(timesteps) if t <= rule.fallback_timestep)
        step = late if step is None else min(step, late)
    if rule.gate is not None and exact[0] < Fraction(rule.gate):
        return math.inf, [FULL] * len(timesteps)
    if step is None:
        return None, [rule.guidance_before] * len(timesteps)
    return timesteps[step], [rule.guidance_before] * step + [FULL] * (len(timesteps) - step)


def some_curves(random: np.random.Generator, count: int, steps: int) -> list[list[int]]:
    """Small whole numbers, whose ties and means are exact: noise, monotone, flat, ripples, valleys."""
    index, denoised = np.arange(steps), []
    for number in range(count):
        noise, bottom = random.integers(0, 10, steps), random.integers(steps)
        two_valleys = np.minimum(abs(index - steps // 4), abs(index - 3 * steps // 4) - 1)
        kinds = [
            noise,
            np.sort(noise),
            np.sort(noise)[::-1],
            np.full(steps, noise[0]),
            2 * steps - index + noise % 3,  # falls, with ripples
            index + noise % 4,  # rises, with ripples
            2 * abs(index - bottom) + noise % 3,
            np.maximum(abs(index - bottom), noise[0] % 4),  # with a flat bottom
            two_valleys + noise % 2 + 1,
            np.array([*np.sort(noise)[:0:-1], 0]),  # the minimum at the last step
        ]
        denoised.append([int(value) for value in kinds[number % len(kinds)]])
    return denoised


def compare(curves: Sequence[Sequence[float]], rule: DynamicTransition) -> list[float | None]:
    """What the loop did is what the reference expects; where the transitions are."""
    denoised, steps = through_the_loop(curves, rule), len(curves[0])
    timesteps = [1 + 1000 // steps * (steps - 1 - index) for index in range(steps)]
    assert denoised.timesteps.tolist() == [timesteps] * len(curves)
    assert denoised.difference_rms.tolist() == [list(curve) for curve in curves]
    assert denoised.nfe.tolist() == [2 * steps] * len(curves)
    actual = []
    for row, curve in enumerate(curves):
        transition, scales = expected_of(curve, timesteps, rule)
        at = math.inf if denoised.gated[row] else denoised.transition_timestep[row].item()
        assert (None if math.isnan(at) else at) == transition, curve
        assert denoised.guidance_scale[row].tolist() == pytest.approx(scales, abs=1e-5), curve
        actual.append(transition)
    return actual


def minimum_by_hand(curve: Sequence[float]) -> int:
    """The first local minimum inside of the curve, but the second if the first has index 1; 5 if none."""
    minima = []
    for index in range(len(curve)):
        inside = 0 < index < len(curve) - 1
        if inside and curve[index] < curve[index - 1] and curve[index] < curve[index + 1]:
            minima.append(index)
    if not minima:
        return 5
    if minima[0] == 1 and len(minima) > 1:
        return minima[1]
    return minima[0]


def chosen_by_hand(latents: Sequence[Tensor]) -> int:
    """What a two-pass transition picks, from one sample's latents before each step and after the last."""
    kept = [x.double().numpy().ravel() for x in latents]
    pairs = zip(kept, kept[1:], strict=False)
    return minimum_by_hand([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
