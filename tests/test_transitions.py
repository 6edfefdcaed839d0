"""Transition rules and their options, on made curves and in the loop, against plain references."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from torch import Generator, Tensor

from callbacks.dynamic_transition import DynamicTransition
from callbacks.static_transition import StaticTransition
from callbacks.transition import Transition
from callbacks.two_pass_transition import TwoPassTransition, chosen_minimum
from infer.denoise import Denoised, denoise, prepare
from infer.rules import GuidanceRule
from tests.conftest import random_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")
FULL = 7.5


def scheduler_of(kind: type = DDIMScheduler, prediction: str = "epsilon", **options):
    return kind(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction,
        **({"clip_sample": False} if kind in (DDIMScheduler, DDPMScheduler) else {}),
        **{"steps_offset": 1, "timestep_spacing": "leading", **options},
    )  # fmt: skip


# Made curves through the loop, and a reference that reads like the definition


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
    made = denoise(
        network, scheduler, torch.ones(count, 1, 2, 2), torch.zeros_like(conditional), conditional, FULL,
        steps or len(curves[0]), [rule],
    )  # fmt: skip
    assert network.calls == len(scheduler.timesteps) and network.rows == made.nfe.sum()
    return made


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
    """(transition timestep or None, the scale of each step) by the rule's options."""
    exact = [Fraction(value) for value in curve]
    step = minimum_of(exact, rule.smoothing, Fraction(rule.prominence), rule.patience)
    if rule.fallback_timestep is not None:
        late = next(i for i, t in enumerate(timesteps) if t <= rule.fallback_timestep)
        step = late if step is None else min(step, late)
    if rule.gate is not None and exact[0] < Fraction(rule.gate):
        return timesteps[0], [FULL] * len(timesteps)
    if step is None:
        return None, [rule.guidance_before] * len(timesteps)
    scales, start = [], timesteps[step]
    for index, t in enumerate(timesteps):
        done = 1.0 if not rule.ramp_timesteps else min(1.0, (start - t) / rule.ramp_timesteps)
        scales.append(
            rule.guidance_before
            if index < step
            else rule.guidance_before + done * (FULL - rule.guidance_before)
        )
    return start, scales


def some_curves(random: np.random.Generator, count: int, steps: int) -> list[list[int]]:
    """Small whole numbers, whose ties and means are exact: noise, monotone, flat, ripples, valleys."""
    index, made = np.arange(steps), []
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
        made.append([int(value) for value in kinds[number % len(kinds)]])
    return made


def compare(curves: Sequence[Sequence[float]], rule: DynamicTransition) -> list[float | None]:
    """What the loop did is what the reference expects; where the transitions are."""
    made, steps = through_the_loop(curves, rule), len(curves[0])
    timesteps = [1 + 1000 // steps * (steps - 1 - index) for index in range(steps)]
    assert made.timesteps.tolist() == [timesteps] * len(curves)
    assert made.difference_rms.tolist() == [list(curve) for curve in curves]
    assert made.nfe.tolist() == [2 * steps] * len(curves)
    found = []
    for row, curve in enumerate(curves):
        transition, scales = expected_of(curve, timesteps, rule)
        at = made.transition_timestep[row].item()
        assert (None if math.isnan(at) else at) == transition, curve
        assert made.guidance_scale[row].tolist() == pytest.approx(scales, abs=1e-5), curve
        found.append(transition)
    return found


OPTIONS = {
    "the plain rule": {},
    "mean of 2": {"smoothing": 2},
    "mean of 3": {"smoothing": 3},
    "mean of 4": {"smoothing": 4},
    "prominence of an eighth": {"prominence": 0.125},
    "prominence of a half": {"prominence": 0.5},
    "patience of 2": {"patience": 2},
    "patience of 4": {"patience": 4},
    "fallback on the grid": {"fallback_timestep": 416},
    "fallback off the grid": {"fallback_timestep": 500.5},
    "fallback at the last step": {"fallback_timestep": 1},
    "gate": {"gate": 4.0},
    "ramp": {"ramp_timesteps": 150},
    "ramp longer than the schedule": {"ramp_timesteps": 2000},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("before", [0.0, -2.0])
def test_one_option_at_a_time(options: dict, before: float) -> None:
    """A few hundred curves, one batch: so each sample has its own transition too."""
    found = compare(some_curves(np.random.default_rng(1), 300, 12), DynamicTransition(before, **options))
    assert len(set(found)) > 3
    assert (None in found) == ("fallback_timestep" not in options)


def test_options_together() -> None:
    """Any of them with any other, on grids of any length that holds a minimum."""
    random = np.random.default_rng(2)
    for _ in range(100):
        smoothing, patience = (int(n) for n in random.integers(1, 5, 2))
        steps = int(random.integers(1 + smoothing + patience, 25))
        last = 1000 // steps * (steps - 1)
        rule = DynamicTransition(
            guidance_before=float(random.choice([0, 1, -2, -7.5])),
            smoothing=smoothing,
            # no share of two means of 3 whole numbers is 0.2718: ties are decided, not rounded
            prominence=float(random.choice([0, 0.2718] if smoothing == 3 else [0, 0.125, 0.25, 0.5])),
            patience=patience,
            fallback_timestep=random.choice([None, float(random.integers(1, last + 1))]),
            gate=random.choice([None, 2.5, 4.0]),
            ramp_timesteps=float(random.choice([0, 100, 333.3])),
        )
        compare(some_curves(random, 20, steps), rule)


def test_without_options_it_is_the_three_point_rule() -> None:
    """Jain et al.: the first i with d[i-2] > d[i-1] and d[i] > d[i-1]; on curves of any real numbers."""
    curves = np.random.default_rng(3).random((500, 15)).astype(np.float32)
    curves[250:] = np.sort(curves[250:])[:, ::-1] + np.float32(0.2) * curves[:250]
    made = through_the_loop(curves.tolist(), DynamicTransition())
    neutral = DynamicTransition(
        smoothing=1, prominence=0, patience=1, fallback_timestep=None, gate=None, ramp_timesteps=0
    )
    same = through_the_loop(curves.tolist(), neutral)
    never = 0
    for row, d in enumerate(curves):
        first = next((i for i in range(2, 15) if d[i - 2] > d[i - 1] and d[i] > d[i - 1]), 15)
        never += first == 15
        assert made.guidance_scale[row].tolist() == [0.0] * first + [FULL] * (15 - first)
    assert 0 < never < 250
    assert torch.equal(made.guidance_scale, same.guidance_scale) and torch.equal(made.latents, same.latents)


BY_HAND = {  # step 0 .. 9 at 901, 801 .. 1; None: never
    "a ripple is not prominent": ({"prominence": 0.3}, [10, 9, 10, 8, 6, 5, 7, 9, 9, 9], 6),
    "exactly prominent enough": ({"prominence": 0.5}, [8, 6, 5, 4, 5, 5, 5, 5, 5, 5], 4),
    "the highest counts, not the last before it": ({"prominence": 0.5}, [9, 9, 5, 4, 5, 9, 9, 9, 9, 9], 4),
    "one step up is not patience": ({"patience": 2}, [5, 3, 4, 2, 3, 1, 2, 3, 3, 3], 7),
    "back at the minimum is not above it": ({"patience": 2}, [5, 3, 4, 3, 4, 4, 5, 5, 5, 5], 5),
    "patience beyond the end": ({"patience": 3}, [9, 8, 7, 6, 5, 4, 3, 2, 3, 4], None),
    "the mean of two has it a step later": ({"smoothing": 2}, [9, 7, 5, 3, 4, 5, 6, 7, 8, 9], 5),
    "a mean without a minimum": ({"smoothing": 2}, [9, 5, 7, 3, 5, 1, 3, 0, 2, 0], None),
    "the fallback comes first": ({"fallback_timestep": 650}, [9, 8, 7, 6, 5, 4, 3, 2, 1, 2], 3),
    "the minimum comes first": ({"fallback_timestep": 350}, [9, 8, 7, 8, 9, 9, 9, 9, 9, 9], 3),
    "at the gate is not below it": ({"gate": 4.0}, [4, 5, 6, 7, 8, 9, 9, 9, 9, 9], None),
    "below the gate": ({"gate": 4.5}, [4, 5, 6, 7, 8, 9, 9, 9, 9, 9], 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_options_on_curves_made_by_hand(name: str) -> None:
    options, curve, step = BY_HAND[name]
    expected = None if step is None else 901 - 100 * step
    assert compare([curve], DynamicTransition(**options)) == [expected]


@pytest.mark.parametrize("watch", ["epsilon", "model_output"])
@pytest.mark.parametrize("options", [{}, {"smoothing": 3, "patience": 2, "prominence": 0.1}])
def test_for_a_v_model_the_watched_space_decides(watch: str, options: dict) -> None:
    """eps_c - eps_u = alpha (v_c - v_u). The trace and the gate are in epsilon space either way."""
    curves, scheduler = np.random.default_rng(4).random((300, 15)), scheduler_of(prediction="v_prediction")
    timesteps = [1 + 66 * (14 - index) for index in range(15)]
    alphas = np.sqrt(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[timesteps])
    gate = 0.3 * alphas[0]
    rule = DynamicTransition(-2.0, watch=watch, gate=gate, **options)
    made = through_the_loop(curves.tolist(), rule, scheduler)
    assert np.allclose(made.difference_rms.numpy(), alphas * curves, rtol=1e-4)
    steps = set()
    for row, curve in enumerate(curves):
        watched = alphas * curve if watch == "epsilon" else curve
        named = {**options, "prominence": Fraction(options.get("prominence", 0))}
        step = minimum_of([Fraction(value) for value in watched], **named)
        step = 0 if curve[0] < 0.3 else 15 if step is None else step
        assert made.guidance_scale[row].tolist() == [-2.0] * step + [FULL] * (15 - step)
        steps.add(step)
    assert len(steps) > 5


@pytest.mark.parametrize(
    "kind, options",
    [(HeunDiscreteScheduler, {}), (PNDMScheduler, {"skip_prk_steps": True}), (PNDMScheduler, {})],
    ids=["heun", "pndm", "pndm with Runge-Kutta"],
)
@pytest.mark.parametrize("rule", [{}, {"smoothing": 2, "patience": 2, "fallback_timestep": 300}])
def test_a_timestep_that_a_solver_evaluates_twice_counts_once(kind: type, options: dict, rule: dict) -> None:
    """Its first evaluation; the others here say something else. Once fired, both get the full scale."""
    scheduler, random = scheduler_of(kind, **options), np.random.default_rng(5)
    scheduler.set_timesteps(12)
    timesteps = scheduler.timesteps.tolist()
    first = [index for index, t in enumerate(timesteps) if t not in timesteps[:index]]
    assert len(first) < len(timesteps)
    curves = some_curves(random, 200, len(timesteps))
    dynamic = DynamicTransition(-2.0, **rule)
    made = through_the_loop(curves, dynamic, scheduler, 12)
    found, misled = [], 0
    for row, curve in enumerate(curves):
        start, _ = expected_of([curve[i] for i in first], [timesteps[i] for i in first], dynamic)
        assert made.transition_timestep[row].nan_to_num(-1).item() == (-1 if start is None else start)
        scales = [-2.0 if start is None or t > start else FULL for t in timesteps]
        assert made.guidance_scale[row].tolist() == scales
        found.append(start)
        misled += expected_of(curve, timesteps, dynamic)[0] != start
    assert len(set(found)) > 3 and misled > 10, "counting each evaluation would not do"


def test_the_latents_follow_the_scales() -> None:
    """DDIM by hand, in double precision, at the scales that the reference expects."""
    curves = some_curves(np.random.default_rng(6), 100, 12)
    rule = DynamicTransition(-2.0, smoothing=2, prominence=0.25, gate=3.0, ramp_timesteps=200)
    made = through_the_loop(curves, rule)
    timesteps = [1 + 83 * (11 - index) for index in range(12)]
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    for row, curve in enumerate(curves):
        x = 1.0
        for t, d, scale in zip(timesteps, curve, expected_of(curve, timesteps, rule)[1], strict=True):
            after = kept[t - 83] if t >= 83 else 1.0
            clean = (x - math.sqrt(1 - kept[t]) * scale * d) / math.sqrt(kept[t])
            x = math.sqrt(after) * clean + math.sqrt(1 - after) * scale * d
        assert made.latents[row].flatten().tolist() == pytest.approx([x] * 4, rel=1e-3, abs=1e-2)


# Ramps and the gate of a static transition


@pytest.mark.parametrize(
    "ramp, expected",
    [
        (0, [-2, -2, -2, -2, -2, 8, 8, 8, 8, 8]),
        (400, [-2, -2, -2, -2, -2, 0.475, 2.975, 5.475, 7.975, 8]),  # 99, 199, 299, 399 of 400; all
        (99, [-2, -2, -2, -2, -2, 8, 8, 8, 8, 8]),  # done at the first step after the transition
        (100, [-2, -2, -2, -2, -2, 7.9, 8, 8, 8, 8]),
        (998, [-2, -2, -2, -2, -2, -1.00802, -0.00601, 0.99599, 1.998, 3]),  # longer than what is left
    ],
)
def test_a_static_ramp_step_by_step(ramp: float, expected: list[float]) -> None:
    """-2 + 10 min(1, (500 - t) / ramp) at t = 401, 301 .. 1; and a dynamic one from where it fires."""

    def scales(rule: Transition, curve: list[float]) -> list[float]:
        """At a guidance scale of 8."""
        made = denoise(Curves([curve]), scheduler_of(), torch.ones(1, 1, 2, 2), *ends, 8.0, 10, [rule])
        return made.guidance_scale[0].tolist()

    ends = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    flat = [1.0] * 10
    assert scales(StaticTransition(500, -2.0, ramp_timesteps=ramp), flat) == pytest.approx(expected, abs=1e-4)
    valley = [9.0, 8, 7, 6, 7, 8, 9, 9, 9, 9]  # fires at step 4, t = 501
    progress = [min(1, done / ramp) if ramp else 1 for done in (0, 100, 200, 300, 400, 500)]
    dynamic = [-2.0] * 4 + [-2 + 10 * done for done in progress]
    assert scales(DynamicTransition(-2.0, ramp_timesteps=ramp), valley) == pytest.approx(dynamic, abs=1e-4)


@pytest.mark.parametrize("before", [0.0, 1.0, -2.0])
def test_a_static_gate_looks_once(before: float) -> None:
    """At the first step, where it costs both evaluations; gated samples get the full scale from there on."""
    firsts = [1, 2, 3, 4, 5]
    curves = [[first] + [1] * 5 + [9] * 6 for first in firsts]
    made = through_the_loop(curves, StaticTransition(500, before, gate=3.0, ramp_timesteps=100))
    timesteps = [1 + 83 * (11 - index) for index in range(12)]
    late = [before if t > 500 else before + min(1, (500 - t) / 100) * (FULL - before) for t in timesteps]
    for row, first in enumerate(firsts):
        gated = first < 3
        assert made.guidance_scale[row].tolist() == pytest.approx([FULL] * 12 if gated else late, abs=1e-5)
        assert made.transition_timestep[row] == (timesteps[0] if gated else 499)
        single = 0 if gated or before == -2 else 4  # steps 1 .. 4
        assert made.nfe[row] == 24 - single


# What is refused, and how it says so


class Other(GuidanceRule):
    pass


REFUSED = [
    (lambda: StaticTransition(-0.5), 10, "must not be negative, as -0.5 is"),
    (lambda: StaticTransition(901), 10, "never hold guidance back: .* run from 901 to 1 "),
    (lambda: StaticTransition(0), 10, "never give guidance"),
    (lambda: StaticTransition(500, FULL), 10, r"guidance_before equals guidance_scale \(7.5\)"),
    (lambda: StaticTransition(ramp_timesteps=-1), 10, "ramp_timesteps must be at least 0, not -1"),
    (lambda: StaticTransition(gate=0.0), 10, "gate must be above 0 .no magnitude is below 0.0"),
    (lambda: StaticTransition(steps_after=20, restart_solver=True), 10, "leave restart_solver out"),
    (lambda: StaticTransition(steps_after=10), 10, "denser grid: above 10 and at most 1000, not 10"),
    (lambda: DynamicTransition(FULL), 10, "guidance_before equals guidance_scale"),
    (lambda: DynamicTransition(gate=-1.0), 10, "gate must be above 0"),
    (lambda: DynamicTransition(ramp_timesteps=-0.1), 10, "ramp_timesteps must be at least 0"),
    (lambda: DynamicTransition(steps_after=20, restart_solver=True), 10, "leave restart_solver out"),
    (lambda: DynamicTransition(steps_after=9), 10, "above 10 and at most 1000, not 9"),
    (lambda: DynamicTransition(smoothing=0), 10, "smoothing and patience are .* at least 1"),
    (lambda: DynamicTransition(patience=0), 10, "smoothing and patience are .* at least 1"),
    (lambda: DynamicTransition(prominence=1.0), 10, r"share of the highest difference, in \[0, 1\), not 1.0"),
    (lambda: DynamicTransition(prominence=-0.1), 10, "share of the highest"),
    (lambda: DynamicTransition(), 2, "at least 3 denoising steps, not 2"),
    (lambda: DynamicTransition(smoothing=4), 5, "at least 6 denoising steps, not 5"),
    (lambda: DynamicTransition(patience=4), 5, "at least 6 denoising steps, not 5"),
    (lambda: DynamicTransition(smoothing=3, patience=3), 6, "at least 7 denoising steps, not 6"),
    (lambda: DynamicTransition(fallback_timestep=901), 10, "fallback at 901 is outside .* from 901 to 1"),
    (lambda: DynamicTransition(fallback_timestep=0), 10, "fallback at 0 is outside"),
    (lambda: TwoPassTransition(FULL), 10, "guidance_before equals guidance_scale"),
    (lambda: TwoPassTransition(), 5, "at least 6 steps, not 5"),
    (lambda: TwoPassTransition(ramp_timesteps=-1), 10, "ramp_timesteps must be at least 0"),
    (lambda: TwoPassTransition(steps_after=20, restart_solver=True), 10, "leave restart_solver out"),
]  # fmt: skip


@pytest.mark.parametrize("make, steps, message", REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_cannot_take_effect_is_refused(
    make: Callable[[], GuidanceRule], steps: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(scheduler_of(), FULL, steps, [make()])


@pytest.mark.parametrize(
    "rule, what",
    [
        (TwoPassTransition(), "rehearsal"),
        (StaticTransition(steps_after=20), "continuation"),
        (DynamicTransition(steps_after=20), "continuation"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_a_rule_that_rearranges_the_loop_stands_alone(rule: GuidanceRule, what: str, order: int) -> None:
    with pytest.raises(ValueError, match=f"a mitigation with a {what} cannot be combined with another"):
        prepare(scheduler_of(), FULL, 10, [rule, Other()][::order])
    assert len(prepare(scheduler_of(), FULL, 10, [rule])) == 10


def test_what_is_just_long_enough_can_fire() -> None:
    """The fewest steps that are not refused hold a minimum."""
    for smoothing in (1, 2, 3):
        for patience in (1, 2, 3):
            valley = [9] * smoothing + [0] + [9 * smoothing + n for n in range(patience)]
            valley = [99] + valley[1:] if smoothing > 1 else valley
            assert len(valley) == 1 + smoothing + patience
            step = minimum_of([Fraction(v) for v in valley], smoothing, Fraction(0), patience)
            assert step == len(valley) - 1
            rule = DynamicTransition(smoothing=smoothing, patience=patience)
            assert compare([valley], rule) == [1]


# Two passes


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


@pytest.mark.parametrize(
    "curve, expected",
    [
        ([5, 4, 3, 4, 5, 6], 2), ([5, 3, 4, 2, 4, 4], 3), ([5, 3, 4, 5, 6, 7], 1), ([6, 5, 4, 3, 2, 1], 5),
        ([1, 2, 3, 4, 5, 6], 5), ([2, 2, 2, 2, 2, 2], 5), ([5, 4, 3, 3, 4, 5], 5), ([5, 4, 3, 4, 2, 4], 2),
        ([9, 8, 7, 6, 5, 6], 4), ([5, 3, 4, 3, 4, 3, 4], 3), ([math.nan] * 6, 5),
    ],
)  # fmt: skip
def test_the_minimum_of_a_first_pass(curve: list[float], expected: int) -> None:
    assert chosen_minimum(curve) == minimum_by_hand(curve) == expected


def test_the_minimum_of_many_first_passes() -> None:
    random = np.random.default_rng(7)
    found = set()
    for steps in range(6, 20):
        for curve in some_curves(random, 60, steps):
            found.add(chosen_minimum(curve))
            assert chosen_minimum(curve) == minimum_by_hand(curve)
    assert {1, 2, 3, 4, 5, 8} <= found


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


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return random_pipeline().unet.eval()


def inputs(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, unconditional and conditional embeddings; of some of the rows."""
    random = Generator().manual_seed(0)
    shapes = (COUNT, 4, 8, 8), (COUNT, 8, 32), (COUNT, 8, 32)
    return tuple(torch.randn(shape, generator=random)[rows] for shape in shapes)


@torch.no_grad()
def one_pass(
    network: Callable, scheduler, number: int, before: float, switch: float, stochastic: bool
) -> list[Tensor]:
    """The latents of one sample before each step and after the last; full guidance from step `switch` on."""
    latents, unconditional, conditional = inputs(slice(number, number + 1))
    scheduler.set_timesteps(STEPS)
    drawn = {"generator": Generator().manual_seed(100 + number)} if stochastic else {}
    kept = [latents * scheduler.init_noise_sigma]
    for index, t in enumerate(scheduler.timesteps):
        scale = before if index < switch else FULL
        x = scheduler.scale_model_input(kept[-1], t).expand(2, -1, -1, -1)
        u, c = network(x, t, encoder_hidden_states=torch.cat([unconditional, conditional]))[0].chunk(2)
        kept += scheduler.step(u + scale * (c - u), t, kept[-1], **drawn, return_dict=False)[:1]
    return kept


def two_passes(
    network: Callable, make: Callable, number: int, before: float, stochastic: bool
) -> tuple[Tensor, int]:
    """The final latents of one sample, and the index at which its second pass switches."""
    first = one_pass(network, make(), number, before, math.inf, stochastic)
    first = [x.double().numpy().ravel() for x in first]
    index = minimum_by_hand(
        [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first, first[1:], strict=False)]
    )
    return one_pass(network, make(), number, before, index, stochastic)[-1], index


COUNT, STEPS = 3, 10


@pytest.mark.parametrize(
    "kind, before, stochastic",
    [
        (DDIMScheduler, -7.5, False),
        (DPMSolverMultistepScheduler, -7.5, False),
        (EulerDiscreteScheduler, -7.5, False),
        (EulerAncestralDiscreteScheduler, -7.5, True),
        (DDPMScheduler, 0.0, True),
    ],
)
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
        made = denoise(network, make(), *inputs(rows), FULL, STEPS, [rule], drawn if stochastic else None)
        assert network.rows == made.nfe.sum()
        return made, drawn

    together, drawn = run(slice(None))
    timesteps, indices = together.timesteps[0].tolist(), []
    for number in range(COUNT):
        latents, index = two_passes(Wavy(unet), make, number, before, stochastic)
        indices.append(index)
        for made, place in ((together, number), (run(slice(number, number + 1))[0], 0)):
            assert made.transition_timestep[place] == timesteps[index]
            assert made.guidance_scale[place].tolist() == [before] * index + [FULL] * (STEPS - index)
            assert torch.allclose(made.latents[place], latents[0], atol=1e-4, rtol=1e-4)
            cost = 1 if before == 0 else 2
            assert made.nfe[place] == cost * STEPS + cost * index + 2 * (STEPS - index)
        alone = Generator().manual_seed(100 + number)
        for _ in range(STEPS if stochastic else 0):
            torch.randn(1, 4, 8, 8, generator=alone)
        assert torch.equal(drawn[number].get_state(), alone.get_state()), "the draws of one pass"
    assert len(set(indices)) > 1, indices


@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, PNDMScheduler])
def test_two_passes_where_timesteps_repeat(kind: type) -> None:
    """What its docstring says, by index, or a refusal: its curve has a point for each of two evaluations."""
    options = {"skip_prk_steps": True} if kind is PNDMScheduler else {}
    scheduler = scheduler_of(kind, "v_prediction", **options)
    try:
        made = denoise(Wavy(None), scheduler, *inputs(slice(None)), FULL, STEPS, [TwoPassTransition()])
    except ValueError:
        return
    for number in range(COUNT):
        latents, index = two_passes(
            Wavy(None), lambda: scheduler_of(kind, "v_prediction", **options), number, -7.5, False
        )
        steps = made.guidance_scale.shape[1]
        assert made.guidance_scale[number].tolist() == [-7.5] * index + [FULL] * (steps - index)
        assert torch.allclose(made.latents[number], latents[0], atol=1e-4, rtol=1e-4)
