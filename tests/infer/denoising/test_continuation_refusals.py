"""Continuations that a scheduler or a grid does not allow, refused before the network is called."""

import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from callbacks.mitigations.transition import Transition
from callbacks.mitigations.two_pass_transition import TwoPassTransition
from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import denoise
from tests.infer.denoising.continuations import BEFORE, FULL, STEPS, given
from tests.infer.denoising.loops import scheduler_of


class Never:
    """A network that must not be called."""

    def __call__(self, *given, **options) -> tuple[Tensor]:
        raise AssertionError("called")


def refused(scheduler, rules: list[GuidanceRule], message: str, steps: int = STEPS) -> None:
    with pytest.raises(ValueError, match=message):
        denoise(Never(), scheduler, *given([0]), FULL, steps, rules)


@pytest.mark.parametrize("make", [StaticTransition, DynamicTransition])
@pytest.mark.parametrize(
    "kind",
    [
        DDPMScheduler, DEISMultistepScheduler, DPMSolverSinglestepScheduler, EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler, LCMScheduler, PNDMScheduler, UniPCMultistepScheduler,
    ],
)  # fmt: skip
def test_schedulers_that_cannot_change_their_grid(kind: type, make: type[Transition]) -> None:
    options = {"skip_prk_steps": True} if kind is PNDMScheduler else {}
    message = f"{kind.__name__} cannot change its grid midway: use one of ddim, dpm, euler"
    refused(scheduler_of(kind, **options), [make(guidance_before=BEFORE, steps_after=100)], message)


@pytest.mark.parametrize("make", [StaticTransition, DynamicTransition])
@pytest.mark.parametrize(
    "kind",
    [
        DDIMScheduler, DDPMScheduler, DPMSolverSinglestepScheduler, EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler, PNDMScheduler,
    ],
)  # fmt: skip
def test_schedulers_without_history(kind: type, make: type[Transition]) -> None:
    message = f"{kind.__name__} has no history to restart: use one of dpm, unipc, deis"
    refused(scheduler_of(kind), [make(guidance_before=BEFORE, restart_solver=True)], message)


@pytest.mark.parametrize("steps_after", [30, 50, 60, 90])
@pytest.mark.parametrize("rule", [StaticTransition, DynamicTransition])
def test_a_ddim_grid_that_does_not_nest(rule: type, steps_after: int) -> None:
    """20 steps are 50 timesteps long: a finer grid must divide them."""
    message = f"a grid of {steps_after} DDIM steps does not meet timestep .* of one of 20: 40, 100, 200"
    refused(scheduler_of(DDIMScheduler), [rule(guidance_before=BEFORE, steps_after=steps_after)], message)


@pytest.mark.parametrize(
    "rule", [StaticTransition(300, BEFORE, steps_after=80), DynamicTransition(steps_after=80)]
)
def test_a_ddim_grid_that_nests_in_the_middle_only(rule: Transition) -> None:
    """25 steps are 40 timesteps long, 80 are 12: they meet at 481 = 1 + 12 * 40, the middle, not at 281."""
    refused(scheduler_of(DDIMScheduler), [rule], "a grid of 80 DDIM steps does not meet", 25)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_no_grid_is_denser_than_the_trained_schedule(kind: type, spacing: str) -> None:
    """Of 1000 timesteps no 1500 can be different ones."""
    scheduler = scheduler_of(kind, timestep_spacing=spacing)
    refused(scheduler, [StaticTransition(500, steps_after=1500)], "1000.*1500|1500.*1000")


def test_a_two_pass_transition_is_refused_alike() -> None:
    ddim, unipc = scheduler_of(DDIMScheduler), scheduler_of(UniPCMultistepScheduler)
    refused(ddim, [TwoPassTransition(BEFORE, restart_solver=True)], "DDIMScheduler has no history")
    refused(ddim, [TwoPassTransition(BEFORE, steps_after=30)], "30 DDIM steps does not meet")
    refused(unipc, [TwoPassTransition(BEFORE, steps_after=100)], "UniPC.* cannot change its grid")


@pytest.mark.parametrize(
    "rule",
    [
        StaticTransition(restart_solver=True), DynamicTransition(steps_after=50),
        TwoPassTransition(restart_solver=True), TwoPassTransition(steps_after=50),
    ],
)  # fmt: skip
def test_beside_another_rule(rule: Transition) -> None:
    for rules in ([rule, StaticTransition(300)], [StaticTransition(300), rule]):
        refused(scheduler_of(DPMSolverMultistepScheduler), rules, "cannot be combined with another")
