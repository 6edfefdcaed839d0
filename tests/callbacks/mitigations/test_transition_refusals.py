"""Transitions that cannot take effect, alone or beside another rule, and how they are refused."""

from collections.abc import Callable

import pytest
from diffusers import HeunDiscreteScheduler, PNDMScheduler

from callbacks.mitigations.base import NoMitigation
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from callbacks.mitigations.two_pass_transition import TwoPassTransition
from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import prepare
from tests.callbacks.mitigations.curves import FULL
from tests.infer.denoising.loops import dry_run, scheduler_of

REFUSED = [
    (lambda: StaticTransition(901), 10, "never hold guidance back: the 10 .* run from 901 to 1"),
    (lambda: StaticTransition(0), 10, "never give guidance"),
    (lambda: StaticTransition(500, FULL), 10, r"guidance_before equals guidance_scale \(7.5\)"),
    (lambda: StaticTransition(gate=0.1, gate_timestep=981), 10, "start at timestep 981, .* starts at 901"),
    (lambda: DynamicTransition(gate=0.1, gate_timestep=981), 10, "start at timestep 981, .* starts at 901"),
    (lambda: DynamicTransition(FULL), 10, "guidance_before equals guidance_scale"),
    (lambda: DynamicTransition(), 2, "at least 3 denoising steps, not 2"),
    (lambda: DynamicTransition(smoothing=4), 5, "at least 6 denoising steps, not 5"),
    (lambda: DynamicTransition(smoothing=3, patience=3), 6, "at least 7 denoising steps, not 6"),
    (lambda: DynamicTransition(fallback_timestep=901), 10, "fallback at 901 is outside .* from 901 to 1"),
    (lambda: DynamicTransition(fallback_timestep=0), 10, "fallback at 0 is outside"),
    (lambda: TwoPassTransition(FULL), 10, "guidance_before equals guidance_scale"),
    (lambda: TwoPassTransition(), 5, "at least 6 steps, not 5"),
]  # fmt: skip


@pytest.mark.parametrize("make, steps, message", REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_cannot_take_effect_is_refused(
    make: Callable[[], GuidanceRule], steps: int, message: str
) -> None:
    """At the start of a run, and by the loop itself."""
    for refuse in (lambda: prepare(scheduler_of(), FULL, steps, [make()]),
                   lambda: dry_run(scheduler_of(), [make()], steps)):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            refuse()


@pytest.mark.parametrize("order", [1, -1])
def test_two_passes_stand_alone(order: int) -> None:
    rules = [TwoPassTransition(), NoMitigation()][::order]
    with pytest.raises(ValueError, match="TwoPassTransition cannot be combined with another mitigation"):
        prepare(scheduler_of(), FULL, 10, rules)
    assert len(prepare(scheduler_of(), FULL, 10, rules[::order][:1])) == 10


@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, PNDMScheduler])
def test_two_passes_need_each_timestep_once(kind: type) -> None:
    with pytest.raises(ValueError, match="a scheduler with each timestep once"):
        prepare(scheduler_of(kind), FULL, 10, [TwoPassTransition()])


@pytest.mark.parametrize("rule", [StaticTransition, DynamicTransition])
def test_a_gate_works_from_the_timestep_that_it_is_for(rule: type, caplog: pytest.LogCaptureFixture) -> None:
    assert prepare(scheduler_of(), FULL, 10, [rule(gate=0.1, gate_timestep=901)])[0] == 901
    rule(gate_timestep=901)
    assert "gate_timestep has no effect: it is the gate's" in caplog.text
