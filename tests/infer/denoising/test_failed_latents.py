"""Latents that are not finite: which step they are blamed on, and that other samples do not notice."""

from collections.abc import Callable

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from callbacks.mitigations.transition import Transition
from callbacks.mitigations.two_pass_transition import TwoPassTransition
from infer.denoising.hooks import GuidanceRule
from tests.infer.denoising.continuations import BEFORE, COUNT, Network, denoised, taken
from tests.infer.denoising.loops import scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rule", [GuidanceRule(), StaticTransition(500, BEFORE), DynamicTransition(BEFORE)],
    ids=["no rule", "static", "dynamic"],
)  # fmt: skip
@pytest.mark.parametrize("step", [0, 6, 19])
def test_one_failing_sample_leaves_the_others_alone(kind: type, rule: GuidanceRule, step: int) -> None:
    """`failed_at` is the step from which on its predictions are NaN; the loop goes on to the end."""
    scheduler, network = scheduler_of(kind), Network()
    healthy = denoised(scheduler, rule)
    network.bad = {2: healthy.timesteps[2, step].item()}
    made = denoised(scheduler, rule, network=network)
    assert healthy.failed_at.tolist() == [-1] * COUNT
    assert made.failed_at.tolist() == [-1, -1, step, -1, -1]
    assert not made.latents[2].isfinite().any()
    others = [0, 1, 3, 4]
    for name in ("latents", "timesteps", "guidance_scale", "difference_rms", "nfe"):
        same, other = getattr(made, name)[others], getattr(healthy, name)[others]
        assert torch.allclose(same, other, rtol=0, atol=0, equal_nan=True)
    if isinstance(rule, Transition):
        at, before = made.transition_timestep, healthy.transition_timestep
        assert torch.equal(at[others].nan_to_num(), before[others].nan_to_num())


@pytest.mark.parametrize("options", [{"steps_after": 50}, {"restart_solver": True}])
@pytest.mark.parametrize(
    "make", [lambda **options: StaticTransition(500, BEFORE, **options),
             lambda **options: DynamicTransition(BEFORE, **options),
             lambda **options: TwoPassTransition(BEFORE, **options)],
    ids=["static", "dynamic", "two passes"],
)  # fmt: skip
@pytest.mark.parametrize("bad", [{2: 870}, {2: 200}, {0: 760, 3: 100}, {4: 120}, {1: 2000}])
def test_failures_around_a_transition(make: Callable, options: dict, bad: dict[int, float]) -> None:
    """Before it, after it and for a sample that never passes it: the first of the sample's own steps."""
    scheduler = scheduler_of(DPMSolverMultistepScheduler)
    healthy = denoised(scheduler, make(**options))
    made = denoised(scheduler, make(**options), network=Network(bad))
    for row in range(COUNT):
        own = made.timesteps[row][taken(made, row)].tolist()
        first = next((index for index, t in enumerate(own) if t <= bad.get(row, -1)), -1)
        assert made.failed_at[row] == first
        assert made.latents[row].isfinite().all() == (first == -1)
        if first == -1:
            assert torch.allclose(made.latents[row], healthy.latents[row], rtol=0, atol=1e-6)
            assert own == healthy.timesteps[row][taken(healthy, row)].tolist()
