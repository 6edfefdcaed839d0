"""Samples that go on with a fresh solver after their transition, against hand-written loops."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from callbacks.mitigations.two_pass_transition import TwoPassTransition
from infer.denoising.hooks import GuidanceRule
from tests.callbacks.mitigations.curves import chosen_by_hand
from tests.infer.denoising.continuations import (
    BEFORE,
    COUNT,
    FULL,
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
from tests.infer.denoising.loops import KEPT, by_hand, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
DENSER = {
    "ddim": (DDIMScheduler, {}, 100),
    "ddim trailing": (DDIMScheduler, {"timestep_spacing": "trailing"}, 40),
    "ddim, v": (DDIMScheduler, {"prediction": "v_prediction"}, 100),
    "dpm": (DPMSolverMultistepScheduler, {}, 50),
    "dpm linspace": (DPMSolverMultistepScheduler, {"timestep_spacing": "linspace"}, 60),
    "dpm trailing, v": (
        DPMSolverMultistepScheduler, {"timestep_spacing": "trailing", "prediction": "v_prediction"}, 33,
    ),
    "dpm of order 3": (DPMSolverMultistepScheduler, {"solver_order": 3}, 40),
    "euler": (EulerDiscreteScheduler, {}, 50),
    "euler linspace, v": (
        EulerDiscreteScheduler, {"timestep_spacing": "linspace", "prediction": "v_prediction"}, 45,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind, options, after", DENSER.values(), ids=DENSER)
@pytest.mark.parametrize("rule", [StaticTransition, DynamicTransition])
def test_a_denser_grid_after_the_transition(kind: type, options: dict, after: int, rule: type) -> None:
    """Static: all at one step. Dynamic: each at its own, the last never."""

    def make():
        return scheduler_of(kind, **options)

    switch = static(500) if rule is StaticTransition else dynamic
    made = denoised(make(), rule(guidance_before=BEFORE, steps_after=after))
    expected = [with_two_solvers(make, number, switch, after) for number in range(COUNT)]
    for row in range(COUNT):
        compare(made, row, expected[row])
    ways = {row.left_at for row in expected}
    assert len(ways) == 1 if rule is StaticTransition else len(ways) >= 4 and None in ways
    most = max(len(row.timesteps) for row in expected)
    assert most > STEPS + 3, "the grid is denser"


def test_ddim_steps_of_both_grids_are_the_formula() -> None:
    """Without any scheduler: x_t -> x_t' over the timesteps 951 .. 501, then 491 .. 1, and to timestep 0."""
    made = denoised(scheduler_of(DDIMScheduler), StaticTransition(510, BEFORE, steps_after=100))
    grid = [*range(951, 500, -50), *range(491, 0, -10), 0]
    latents, unconditional, conditional = given(list(range(COUNT)))
    network = Network()
    for t, after in zip(grid, grid[1:], strict=False):
        u = network(latents, torch.tensor(t), unconditional)[0]
        c = network(latents, torch.tensor(t), conditional)[0]
        noise = u + (FULL if t <= 510 else BEFORE) * (c - u)
        clean = (latents - math.sqrt(1 - KEPT[t]) * noise) / math.sqrt(KEPT[t])
        latents = math.sqrt(KEPT[after]) * clean + math.sqrt(1 - KEPT[after]) * noise
    assert torch.allclose(made.latents, latents, rtol=1e-4, atol=1e-4)
    assert made.timesteps.tolist() == [[*grid[:-1]]] * COUNT


@pytest.mark.parametrize(
    "kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler]
)
@pytest.mark.parametrize(
    "options", [{}, {"timestep_spacing": "linspace"}, {"prediction": "v_prediction"}], ids=str
)
@pytest.mark.parametrize("rule", [StaticTransition, DynamicTransition])
def test_a_restarted_solver_has_no_history(kind: type, options: dict, rule: type) -> None:
    """The latents after the transition come from the latents at it and from later predictions only."""

    def make():
        return scheduler_of(kind, **options)

    switch = static(500) if rule is StaticTransition else dynamic
    made = denoised(make(), rule(guidance_before=BEFORE, restart_solver=True))
    kept = denoised(make(), rule(guidance_before=BEFORE))
    for row in range(COUNT):
        expected = with_two_solvers(make, row, switch, None)
        compare(made, row, expected)
        assert made.timesteps[row][taken(made, row)].tolist() == kept.timesteps[row].tolist()
        assert made.nfe[row] == kept.nfe[row]
        same = torch.allclose(made.latents[row], kept.latents[row], atol=1e-3)
        assert same == (expected.left_at is None), "the history matters"


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_a_transition_on_a_timestep_of_the_denser_grid_ends(kind: type) -> None:
    """50 linspace steps have the timestep 500 (DPM); a grid of 200 that starts there must not repeat it."""
    scheduler = scheduler_of(kind, timestep_spacing="linspace")
    rule = StaticTransition(500, 0.0, steps_after=200)
    made = denoised(scheduler, rule, rows=[0, 1], steps=50)
    timesteps = made.timesteps[0].tolist()
    assert all(a > b for a, b in zip(timesteps, timesteps[1:], strict=False))
    late = [t for t in timesteps if t <= 500]
    assert 99 <= len(late) <= 101 and len(timesteps) - len(late) in (25, 26)
    if kind is DPMSolverMultistepScheduler:
        assert late[:3] == [500, 495, 490]
    assert made.nfe.tolist() == [len(timesteps) - len(late) + 2 * len(late)] * 2  # 0 costs one evaluation


@pytest.mark.parametrize("kind, after", [(DPMSolverMultistepScheduler, 200), (EulerDiscreteScheduler, 150)])
@pytest.mark.parametrize("timestep", [900, 850, 500])
def test_no_step_is_longer_than_before_the_transition(kind: type, after: int, timestep: float) -> None:
    """Grids with leading spacing begin late: DPM's of 200 steps at 797, where that of 50 has begun at 932."""
    scheduler = scheduler_of(kind)
    scheduler.set_timesteps(50)
    coarse = -scheduler.timesteps.diff().min().item()
    rule = StaticTransition(timestep, BEFORE, steps_after=after)
    made = denoised(scheduler_of(kind), rule, rows=[0], steps=50)
    assert -made.timesteps[0].diff().min() <= coarse


def test_a_ramp_goes_on_over_the_denser_grid() -> None:
    def make():
        return scheduler_of(DPMSolverMultistepScheduler)

    made = denoised(make(), DynamicTransition(BEFORE, ramp_timesteps=170, steps_after=50))
    for row in range(COUNT):
        expected = with_two_solvers(make, row, dynamic, 50, ramp=170)
        compare(made, row, expected)
        assert expected.left_at is None or len({round(scale, 3) for scale in expected.scales}) > 5


@pytest.mark.parametrize("rule", [StaticTransition, DynamicTransition])
@pytest.mark.parametrize("options", [{"steps_after": 50}, {"restart_solver": True}])
def test_gated_samples_have_ordinary_guidance_on_the_ordinary_grid(rule: type, options: dict) -> None:
    """The samples differ in their first difference: that of the first is least, of the last greatest."""

    def make():
        return scheduler_of(DPMSolverMultistepScheduler)

    first = denoised(make(), DynamicTransition(BEFORE)).difference_rms[:, 0]
    assert first.tolist() == sorted(first.tolist())
    gate = (first[1] + first[2]).item() / 2
    made = denoised(make(), rule(guidance_before=BEFORE, gate=gate, **options))
    ordinary = denoised(make(), GuidanceRule())
    for row in range(2):
        assert torch.allclose(made.latents[row], ordinary.latents[row], rtol=1e-4, atol=1e-4)
        assert made.timesteps[row][taken(made, row)].tolist() == ordinary.timesteps[row].tolist()
        assert (
            made.nfe[row] == ordinary.nfe[row] and made.guidance_scale[row][taken(made, row)].eq(FULL).all()
        )
    for row in range(2, COUNT):
        switch = static(500) if rule is StaticTransition else dynamic
        compare(made, row, with_two_solvers(make, row, switch, options.get("steps_after")))


def first_pass(scheduler, number: int) -> int:
    """The step that a pass at one scale picks."""

    def guide(index: int, t: float, u: Tensor, c: Tensor) -> Tensor:
        return u + BEFORE * (c - u)

    return chosen_by_hand(by_hand(Network(), scheduler, given([number]), STEPS, guide))


@pytest.mark.parametrize("options", [{"steps_after": 50}, {"restart_solver": True}])
def test_a_two_pass_transition_goes_on_too(options: dict) -> None:
    """From the index that its first pass picks; the evaluations of that pass come on top."""

    def make():
        return scheduler_of(DPMSolverMultistepScheduler)

    made = denoised(make(), TwoPassTransition(BEFORE, **options))
    for row in range(COUNT):
        chosen = first_pass(make(), row)
        expected = with_two_solvers(
            make, row, lambda index, t, curve, at=chosen: index == at, options.get("steps_after")
        )
        assert made.transition_timestep[row] == expected.timesteps[chosen]
        assert torch.allclose(made.latents[row], expected.latents, rtol=1e-4, atol=1e-4)
        assert made.timesteps[row][taken(made, row)].tolist() == expected.timesteps
        assert made.nfe[row] == 2 * STEPS + 2 * len(expected.timesteps)
