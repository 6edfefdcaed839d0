"""Samples of a batch that go on at different steps: their noise, their independence, and what they cost."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Generator

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.loop import denoise
from tests.infer.denoising.continuations import (
    BEFORE,
    COUNT,
    STEPS,
    Network,
    compare,
    denoised,
    dynamic,
    given,
    static,
    taken,
    with_two_solvers,
)
from tests.infer.denoising.loops import scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("options", [{"steps_after": 50}, {"restart_solver": True}])
@pytest.mark.parametrize("rule", [StaticTransition, DynamicTransition])
def test_noise_is_a_samples_own(rule: type, options: dict) -> None:
    """A stochastic solver draws from a sample's generator as if it were alone, before and after it leaves."""

    def make():
        return scheduler_of(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++")

    def generators(rows: list[int]) -> list[Generator]:
        return [Generator().manual_seed(50 + n) for n in rows]

    switch = static(500) if rule is StaticTransition else dynamic
    order = [3, 0, 4, 2, 1]
    made = denoised(make(), rule(guidance_before=BEFORE, **options), order, generators=generators(order))
    for row, number in enumerate(order):
        generator = Generator().manual_seed(50 + number)
        expected = with_two_solvers(make, number, switch, options.get("steps_after"), generator)
        compare(made, row, expected)
        one = rule(guidance_before=BEFORE, **options)
        compare(denoised(make(), one, [number], generators=generators([number])), 0, expected)
    assert len(set(made.transition_timestep.nan_to_num().tolist())) == (1 if rule is StaticTransition else 5)


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_who_goes_on_does_not_know_the_others(kind: type) -> None:
    """Alone, in pairs, in another order: the same latents, steps and traces."""
    together = denoised(scheduler_of(kind), DynamicTransition(BEFORE, steps_after=40))
    for rows in ([0], [4], [3, 1], [2, 4, 0]):
        made = denoised(scheduler_of(kind), DynamicTransition(BEFORE, steps_after=40), rows)
        for row, number in enumerate(rows):
            assert torch.allclose(made.latents[row], together.latents[number], atol=1e-5)
            for name in ("timesteps", "guidance_scale", "difference_rms", "unconditional_rms"):
                own = getattr(made, name)[row][taken(made, row)]
                other = getattr(together, name)[number][taken(together, number)]
                assert torch.allclose(own, other, rtol=1e-4)


def test_watching_ends_when_a_sample_leaves() -> None:
    """The network sees a sample at each of its own timesteps once, and at no others."""
    network = Network()
    made = denoised(
        scheduler_of(EulerDiscreteScheduler), DynamicTransition(BEFORE, steps_after=50), network=network
    )
    for row in range(COUNT):
        assert made.timesteps[row][taken(made, row)].tolist() == pytest.approx(network.seen[row])


@pytest.mark.parametrize("options", [{"steps_after": 50}, {"restart_solver": True}])
def test_nobody_watches_who_has_left(options: dict) -> None:
    """At a full scale of 1 only the prediction with the prompt is needed from there on."""
    rule = DynamicTransition(BEFORE, **options)
    network, scheduler = Network(), scheduler_of(DPMSolverMultistepScheduler)
    made = denoise(network, scheduler, *given([0, 1, 2, 3, 4]), 1.0, STEPS, [rule])
    assert made.nfe.tolist() == network.rows
    for row, at in enumerate(made.transition_timestep.tolist()):
        own = made.timesteps[row][taken(made, row)].tolist()
        watched = [t for t in own if math.isnan(at) or t >= at]
        assert made.nfe[row] == len(own) + len(watched)
    assert made.transition_timestep.isfinite().tolist() == [True] * 4 + [False]
