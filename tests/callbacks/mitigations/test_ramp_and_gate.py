"""Ramps step by step, of static and dynamic transitions; and the gate of a static one."""

import pytest
import torch

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from callbacks.mitigations.transition import Transition
from infer.denoising.loop import denoise
from tests.callbacks.mitigations.curves import FULL, Curves, through_the_loop
from tests.infer.denoising.loops import scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "ramp, expected",
    [
        (0, [-2, -2, -2, -2, -2, 8, 8, 8, 8, 8]),
        (400, [-2, -2, -2, -2, -2, 0.475, 2.975, 5.475, 7.975, 8]),  # 99, 199, 299, 399 of 400; all
        (99, [-2, -2, -2, -2, -2, 8, 8, 8, 8, 8]),  # done at the first step after the transition
        (100, [-2, -2, -2, -2, -2, 7.9, 8, 8, 8, 8]),
        (500, [-2, -2, -2, -2, -2, -0.02, 1.98, 3.98, 5.98, 7.98]),  # to the end
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
        assert made.gated[row] == gated  # ... which is no transition
        assert torch.isnan(made.transition_timestep[row]) if gated else made.transition_timestep[row] == 499
        single = 0 if gated or before == -2 else 4  # steps 1 .. 4
        assert made.nfe[row] == 24 - single
