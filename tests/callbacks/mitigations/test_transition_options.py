"""The dynamic transition and its options, on given curves through the loop, against plain references."""

import math
from fractions import Fraction

import numpy as np
import pytest
from diffusers import HeunDiscreteScheduler, PNDMScheduler

from callbacks.mitigations.dynamic_transition import DynamicTransition
from tests.callbacks.mitigations.curves import (
    FULL,
    compare,
    expected_of,
    minimum_of,
    some_curves,
    through_the_loop,
)
from tests.infer.denoising.loops import KEPT, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {
    "the plain rule": {}, "mean of 2": {"smoothing": 2}, "mean of 3": {"smoothing": 3},
    "mean of 4": {"smoothing": 4}, "prominence of an eighth": {"prominence": 0.125},
    "prominence of a half": {"prominence": 0.5}, "patience of 2": {"patience": 2},
    "patience of 4": {"patience": 4}, "fallback on the grid": {"fallback_timestep": 416},
    "fallback off the grid": {"fallback_timestep": 500.5},
    "fallback at the last step": {"fallback_timestep": 1}, "gate": {"gate": 4.0},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("before", [0.0, -2.0])
def test_one_option_at_a_time(options: dict, before: float) -> None:
    """A few hundred curves, one batch: so each sample has its own transition too."""
    actual = compare(some_curves(np.random.default_rng(1), 300, 12), DynamicTransition(before, **options))
    assert len(set(actual)) > 3
    assert (None in actual) == ("fallback_timestep" not in options)


def test_options_together() -> None:
    """Any of them with any other, on grids of any length that holds a minimum."""
    random = np.random.default_rng(2)
    for _ in range(100):
        smoothing, patience = (int(n) for n in random.integers(1, 5, 2))
        steps = int(random.integers(1 + smoothing + patience, 25))
        last = 1000 // steps * (steps - 1)
        fallback = random.choice([None, float(random.integers(1, last + 1))])
        rule = DynamicTransition(
            guidance_before=float(random.choice([0, 1, -2, -7.5])),
            smoothing=smoothing,
            # no share of two means of 3 whole numbers is 0.2718: ties are decided, not rounded
            prominence=float(random.choice([0, 0.2718] if smoothing == 3 else [0, 0.125, 0.25, 0.5])),
            patience=patience,
            fallback_timestep=fallback,
            gate=random.choice([None, 2.5, 4.0]),
        )
        compare(some_curves(random, 20, steps), rule)


def test_without_options_it_is_the_three_point_rule() -> None:
    """Jain et al.: the first i with d[i-2] > d[i-1] and d[i] > d[i-1]; on curves of any real numbers."""
    curves = np.random.default_rng(3).random((500, 15)).astype(np.float32)
    curves[250:] = np.sort(curves[250:])[:, ::-1] + np.float32(0.2) * curves[:250]
    denoised = through_the_loop(curves.tolist(), DynamicTransition())
    never = 0
    for row, d in enumerate(curves):
        first = next((i for i in range(2, 15) if d[i - 2] > d[i - 1] and d[i] > d[i - 1]), 15)
        never += first == 15
        assert denoised.guidance_scale[row].tolist() == [0.0] * first + [FULL] * (15 - first)
    assert 0 < never < 250


BY_HAND = {  # the options, a curve, and the step at which it fires; None: never
    "a V: one step after its minimum": ({}, [5, 4, 3, 4, 5, 6], 3),
    "several minima: the first": ({}, [5, 3, 4, 1, 2, 3], 2),
    "rising before it falls": ({}, [1, 3, 2, 4, 4, 4], 3),
    "a minimum that the last step shows": ({}, [6, 5, 4, 3, 2, 3], 5),
    "a minimum at the last step": ({}, [6, 5, 4, 3, 2, 1], None),
    "rising": ({}, [1, 2, 3, 4, 5, 6], None),
    "flat": ({}, [2, 2, 2, 2, 2, 2], None),
    "a plateau at the bottom": ({}, [3, 2, 1, 1, 2, 3], None),
    "a maximum": ({}, [1, 2, 3, 2, 1, 0.5], None),
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
    "below the gate": ({"gate": 4.5}, [4, 5, 6, 7, 8, 9, 9, 9, 9, 9], -math.inf),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_curves_by_hand(name: str) -> None:
    options, curve, step = BY_HAND[name]
    expected = None if step is None else 1 + 1000 // len(curve) * (len(curve) - 1 - step)
    assert compare([curve], DynamicTransition(**options)) == [expected]


def test_nothing_of_a_batch_stays_for_the_next() -> None:
    rule = DynamicTransition()
    assert compare([[5, 4, 3, 4]], rule) == [1] and compare([[1, 2, 3, 4]], rule) == [None]


@pytest.mark.parametrize("watch", ["epsilon", "model_output"])
@pytest.mark.parametrize("options", [{}, {"smoothing": 3, "patience": 2, "prominence": 0.1}])
def test_for_a_v_model_the_watched_space_decides(watch: str, options: dict) -> None:
    """eps_c - eps_u = alpha (v_c - v_u). The trace and the gate are in epsilon space either way."""
    curves, scheduler = np.random.default_rng(4).random((300, 15)), scheduler_of(prediction="v_prediction")
    timesteps = [1 + 66 * (14 - index) for index in range(15)]
    alphas = np.sqrt(KEPT[timesteps])
    gate = 0.3 * alphas[0]
    rule = DynamicTransition(-2.0, watch=watch, gate=gate, **options)
    denoised = through_the_loop(curves.tolist(), rule, scheduler)
    assert np.allclose(denoised.difference_rms.numpy(), alphas * curves, rtol=1e-4)
    steps = set()
    for row, curve in enumerate(curves):
        watched = alphas * curve if watch == "epsilon" else curve
        named = {**options, "prominence": Fraction(options.get("prominence", 0))}
        step = minimum_of([Fraction(value) for value in watched], **named)
        step = 0 if curve[0] < 0.3 else 15 if step is None else step
        assert denoised.guidance_scale[row].tolist() == [-2.0] * step + [FULL] * (15 - step)
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
    denoised = through_the_loop(curves, dynamic, scheduler, 12)
    actual, misled = [], 0
    for row, curve in enumerate(curves):
        start, _ = expected_of([curve[i] for i in first], [timesteps[i] for i in first], dynamic)
        assert denoised.transition_timestep[row].nan_to_num(-1).item() == (-1 if start is None else start)
        scales = [-2.0 if start is None or t > start else FULL for t in timesteps]
        assert denoised.guidance_scale[row].tolist() == scales
        actual.append(start)
        misled += expected_of(curve, timesteps, dynamic)[0] != start
    assert len(set(actual)) > 3 and misled > 10, "counting each evaluation would not do"


def test_the_latents_follow_the_scales() -> None:
    """DDIM by hand, in double precision, at the scales that the reference expects."""
    curves = some_curves(np.random.default_rng(6), 100, 12)
    rule = DynamicTransition(-2.0, smoothing=2, prominence=0.25, gate=3.0)
    denoised = through_the_loop(curves, rule, scheduler_of(set_alpha_to_one=True))
    timesteps = [1 + 83 * (11 - index) for index in range(12)]
    for row, curve in enumerate(curves):
        x = 1.0
        for t, d, scale in zip(timesteps, curve, expected_of(curve, timesteps, rule)[1], strict=True):
            after = KEPT[t - 83] if t >= 83 else 1.0
            clean = (x - math.sqrt(1 - KEPT[t]) * scale * d) / math.sqrt(KEPT[t])
            x = math.sqrt(after) * clean + math.sqrt(1 - after) * scale * d
        assert denoised.latents[row].flatten().tolist() == pytest.approx([x] * 4, rel=1e-3, abs=1e-2)
