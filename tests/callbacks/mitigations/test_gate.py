"""The gate of a static transition: ordinary guidance for prompts that are not memorized."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from callbacks.mitigations.static_transition import StaticTransition
from tests.callbacks.mitigations.curves import FULL, through_the_loop
from tests.infer.denoising.loops import scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("before", [0.0, 1.0, -2.0])
def test_a_static_gate_is_read_once(before: float) -> None:
    """At the first step, where it costs both evaluations; gated samples get the full scale from there on."""
    firsts = [1, 2, 3, 4, 5]
    curves = [[first] + [1] * 5 + [9] * 6 for first in firsts]
    run = through_the_loop(curves, StaticTransition(500, before, gate=3.0))
    timesteps = [1 + 83 * (11 - index) for index in range(12)]
    late = [before if t > 500 else FULL for t in timesteps]
    for row, first in enumerate(firsts):
        gated = first < 3
        assert run.guidance_scale[row].tolist() == ([FULL] * 12 if gated else late)
        assert run.gated[row] == gated  # ... which is no transition
        assert torch.isnan(run.transition_timestep[row]) if gated else run.transition_timestep[row] == 499
        single = 0 if gated or before == -2 else 4  # steps 1 .. 4
        assert run.nfe[row] == 24 - single


@pytest.mark.parametrize("kind, first", [(DDIMScheduler, 1), (EulerDiscreteScheduler, 0)])
def test_at_zero_terminal_snr_the_gate_takes_the_first_step_with_a_signal(kind: type, first: int) -> None:
    """At t = 999 DDIM's alpha is exactly 0, and eps_c - eps_u with it; Euler's is 2^-12."""
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = scheduler_of(kind, "v_prediction", **options)
    curves = [[1] * 10, [9, *[1] * 9], [1, 9, *[1] * 8], [9] * 10]
    magnitudes = through_the_loop(curves, StaticTransition(500, -2.0), scheduler).difference_rms[:, first]
    gate = (magnitudes.min() + magnitudes.max()).item() / 2
    run = through_the_loop(curves, StaticTransition(500, -2.0, gate=gate), scheduler)
    assert run.timesteps[0, 0] == 999
    assert run.gated.tolist() == [[True, True, False, False], [True, False, True, False]][1 - first]
    assert run.guidance_scale[run.gated][:, first:].eq(FULL).all()
