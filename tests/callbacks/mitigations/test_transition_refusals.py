"""Transitions that cannot take effect, alone or beside another rule, and how they are refused."""

from collections.abc import Callable

import pytest

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from callbacks.mitigations.two_pass_transition import TwoPassTransition
from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import prepare
from tests.callbacks.mitigations.curves import FULL
from tests.infer.denoising.loops import dry_run, scheduler_of


class Other(GuidanceRule):
    pass


REFUSED = [
    (lambda: StaticTransition(-0.5), 10, "must not be negative, as -0.5 is"),
    (lambda: StaticTransition(901), 10, "never hold guidance back: .* run from 901 to 1 "),
    (lambda: StaticTransition(0), 10, "never give guidance"),
    (lambda: StaticTransition(500, FULL), 10, r"guidance_before equals guidance_scale \(7.5\)"),
    (lambda: StaticTransition(ramp_timesteps=-1), 10, "ramp_timesteps must be at least 0, not -1"),
    (lambda: StaticTransition(500, ramp_timesteps=501), 10, "a ramp of 501 .* never reaches the full scale"),
    (lambda: StaticTransition(gate_timestep=901), 10, "gate_timestep is the gate's"),
    (lambda: StaticTransition(gate=0.1, gate_timestep=981), 10, "start at timestep 981, .* starts at 901"),
    (lambda: DynamicTransition(gate=0.1, gate_timestep=981), 10, "start at timestep 981, .* starts at 901"),
    (lambda: StaticTransition(gate=float("nan")), 10, "gate must be above 0"),
    (lambda: StaticTransition(guidance_before=float("nan")), 10, "guidance_before must be a number, not nan"),
    (lambda: StaticTransition(float("nan")), 10, "must not be negative, as nan is"),
    (lambda: DynamicTransition(fallback_timestep=300, ramp_timesteps=301), 10, "never reaches the full"),
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


@pytest.mark.parametrize("steps", [0, 1001])
def test_more_steps_than_the_schedule_has_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_inference_steps must be within 1..1000, not {steps}"):
        prepare(scheduler_of(), FULL, steps)


@pytest.mark.parametrize("rule", [StaticTransition, DynamicTransition])
def test_a_gate_works_from_the_timestep_that_it_is_for(rule: type) -> None:
    assert prepare(scheduler_of(), FULL, 10, [rule(gate=0.1, gate_timestep=901)])[0] == 901


def test_a_negative_transition_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative, as -1 is"):
        StaticTransition(-1)


@pytest.mark.parametrize(
    "rule, message",
    [
        (StaticTransition(981), "never hold guidance back: the 50 timesteps.* from 981 to 1 .of 0..999"),
        (StaticTransition(0.5), "never give guidance: the 50 timesteps of this schedule run from 981 to 1 "),
        (
            DynamicTransition(fallback_timestep=981),
            "fallback at 981 is outside .* 50 timesteps run from 981 to 1",
        ),
        (DynamicTransition(steps_after=50), "above 50 and at most 1000, not 50"),
        (StaticTransition(500, 7.5), "guidance_before equals guidance_scale"),
        (DynamicTransition(7.5), "guidance_before equals guidance_scale"),
    ],
)
def test_the_loop_refuses_what_cannot_take_effect(rule: GuidanceRule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dry_run(scheduler_of(), [rule])


def test_dynamic_transition_needs_three_steps() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        dry_run(scheduler_of(), [DynamicTransition()], 2)
