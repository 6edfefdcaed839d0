"""Samples that go on with a fresh solver after their transition, against hand-written loops; and failures."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
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
from torch import Generator, Tensor

from callbacks.dynamic_transition import DynamicTransition
from callbacks.static_transition import StaticTransition
from callbacks.transition import Transition
from callbacks.two_pass_transition import TwoPassTransition
from infer.denoise import Denoised, denoise
from infer.rules import GuidanceRule

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, FULL, BEFORE, COUNT = 20, 3.0, -1.0, 5


def scheduler_of(kind: type, prediction: str = "epsilon", **options):
    return kind(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction,
        **({"clip_sample": False, "set_alpha_to_one": False} if kind is DDIMScheduler else {}),
        **({} if kind is DPMSolverSinglestepScheduler else {"steps_offset": 1, "timestep_spacing": "leading"})
        | options,
    )  # fmt: skip


class Network:
    """Called like a UNet, smooth in x. The embedding's first numbers: has a prompt, and which sample it is.

    The difference of the two predictions is least at timestep 700 for the first sample, later for the others,
    and falls to the end for the last. From timestep `bad[n]` on, sample n's predictions are NaN.
    """

    LEAST = (700, 560, 430, 300, -100)

    def __init__(self, bad: dict[int, float] | None = None):
        self.bad, self.rows, self.seen = bad or {}, [0] * COUNT, [[] for _ in range(COUNT)]

    def __call__(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **options) -> tuple[Tensor]:
        prompt, sample = encoder_hidden_states[:, 0, :2].view(-1, 2, 1, 1).unbind(1)
        t, number = float(t), sample.flatten().long().tolist()
        for n in number:
            self.rows[n] += 1
            self.seen[n] += [t] if self.seen[n][-1:] != [t] else []
        least = torch.tensor([float(self.LEAST[n]) for n in number]).view(-1, 1, 1, 1)
        width = 0.1 + (t - least).abs() / 1000
        output = torch.tanh(0.5 * x + 0.1 * sample.view(-1, 1, 1, 1))
        output = output + prompt.view(-1, 1, 1, 1) * width * (1 + 0.2 * torch.cos(x))
        broken = torch.tensor([t <= self.bad.get(n, -1) for n in number]).view(-1, 1, 1, 1)
        return (torch.where(broken, math.nan, output),)


def inputs(rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, unconditional and conditional embeddings."""
    noise = torch.randn(COUNT, 4, 4, 4, generator=Generator().manual_seed(0))[rows]
    unconditional = torch.tensor([[0.0, n, 0.0] for n in rows]).view(-1, 1, 3).repeat(1, 2, 1)
    return noise, unconditional, unconditional + torch.tensor([1.0, 0.0, 0.0])


def denoised(
    scheduler, rule: GuidanceRule, rows: list[int] | None = None, network: Network | None = None,
    steps: int = STEPS, generators: list[Generator] | None = None,
) -> Denoised:  # fmt: skip
    """Of all samples, or some; the rows that the network was given are those that are counted."""
    rows, network = list(range(COUNT)) if rows is None else rows, network or Network()
    made = denoise(network, scheduler, *inputs(rows), FULL, steps, [rule], generators)
    assert made.nfe.tolist() == [network.rows[n] for n in rows]
    return made


class Expected(NamedTuple):
    """One sample's own steps."""

    latents: Tensor
    timesteps: list[float]
    scales: list[float]
    left_at: int | None
    magnitudes: list[tuple[float, float, float]]  # RMS of eps_u, eps_c and their difference


Switch = Callable[[int, float, list[float]], bool]  # of step, timestep and differences so far: has it passed?


def alpha_of(timestep: float) -> float:
    """Of Stable Diffusion's noise schedule; sigma / alpha is linear between timesteps."""
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    return 1 / math.hypot(1, np.interp(timestep, np.arange(1000), np.sqrt((1 - kept) / kept)))


def static(timestep: float) -> Switch:
    return lambda index, t, curve: t <= timestep


def dynamic(index: int, t: float, curve: list[float]) -> bool:
    return index >= 2 and curve[-3] > curve[-2] and curve[-1] > curve[-2]


def by_hand(
    make: Callable, number: int, switch: Switch, after: int | None, generator: Generator | None = None,
    ramp: float = 0,
) -> Expected:  # fmt: skip
    """A loop over the coarse grid until the switch; then one with another solver, which takes that step.

    after: steps of the denser grid; None: the same grid, by a solver that has seen nothing.
    """
    network, (latents, unconditional, conditional) = Network(), inputs([number])
    drawn = {} if generator is None else {"generator": generator}
    coarse, timesteps, scales, magnitudes = make(), [], [], []
    coarse.set_timesteps(STEPS)

    def predict(solver, t: Tensor) -> tuple[Tensor, Tensor]:
        x, alpha = solver.scale_model_input(latents, t), alpha_of(t.item())
        u, c = network(x, t, unconditional)[0], network(x, t, conditional)[0]
        noises = [u, c]
        if solver.config.prediction_type == "v_prediction":
            noises = [alpha * v + math.sqrt(1 - alpha**2) * x for v in (u, c)]
        magnitudes.append(
            tuple(y.double().pow(2).mean().sqrt().item() for y in (*noises, noises[1] - noises[0]))
        )
        timesteps.append(t.item())
        return u, c

    latents = latents * coarse.init_noise_sigma
    for index, t in enumerate(coarse.timesteps):
        u, c = predict(coarse, t)
        if switch(index, t.item(), [difference for *_, difference in magnitudes]):
            break
        scales.append(BEFORE)
        latents = coarse.step(u + BEFORE * (c - u), t, latents, **drawn, return_dict=False)[0]
    else:
        return Expected(latents[0], timesteps, scales, None, magnitudes)

    fresh = make()
    if after is None:
        fresh.set_timesteps(STEPS)
        fresh.set_begin_index(index)
        grid = fresh.timesteps[index:]
    else:
        fresh.set_timesteps(after)
        grid = [t.item(), *(later for later in fresh.timesteps.tolist() if later < t)]
        if isinstance(fresh, DDIMScheduler):
            grid = torch.tensor(grid)
        else:
            fresh.set_timesteps(timesteps=grid)
            grid = fresh.timesteps
    for place, t in enumerate(grid):
        fresh.scale_model_input(latents, t)
        if place:
            u, c = predict(fresh, t)
        done = min(1, (grid[0].item() - t.item()) / ramp) if ramp else 1
        scales.append(BEFORE + done * (FULL - BEFORE))
        guided = u + scales[-1] * (c - u)
        latents = fresh.step(guided, t, latents, **drawn, return_dict=False)[0]
    return Expected(latents[0], timesteps, scales, index, magnitudes)


def taken(made: Denoised, row: int) -> Tensor:
    """Which columns of the traces are steps of this row."""
    return made.timesteps[row].isfinite()


def compare(made: Denoised, row: int, expected: Expected) -> None:
    """Latents and every trace of a row, NaN where it took no step."""
    assert torch.allclose(made.latents[row], expected.latents, rtol=1e-4, atol=1e-4)
    columns = taken(made, row)
    own = made.timesteps[row][columns].tolist()
    assert own == pytest.approx(expected.timesteps) and len(own) == len(expected.timesteps)
    assert all(a > b for a, b in zip(own, own[1:], strict=False)), "no timestep twice"
    assert made.guidance_scale[row][columns].tolist() == pytest.approx(expected.scales, abs=1e-5)
    assert made.guidance_scale[row][~columns].isnan().all()
    traces = made.unconditional_rms, made.conditional_rms, made.difference_rms
    for trace, magnitudes in zip(traces, zip(*expected.magnitudes, strict=True), strict=True):
        assert trace[row][columns].tolist() == pytest.approx(magnitudes, rel=1e-3)
        assert trace[row][~columns].isnan().all()
    assert made.nfe[row] == 2 * len(expected.timesteps)
    assert made.failed_at[row] == -1
    at = made.transition_timestep[row].item()
    if expected.left_at is None:
        assert math.isnan(at)
    else:
        assert at == pytest.approx(expected.timesteps[expected.left_at])


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
    expected = [by_hand(make, number, switch, after) for number in range(COUNT)]
    for row in range(COUNT):
        compare(made, row, expected[row])
    ways = {row.left_at for row in expected}
    assert len(ways) == 1 if rule is StaticTransition else len(ways) >= 4 and None in ways
    most = max(len(row.timesteps) for row in expected)
    assert most > STEPS + 3, "the grid is denser"


def test_ddim_steps_of_both_grids_are_the_formula() -> None:
    """Without any scheduler: x_t -> x_t' over the timesteps 951 .. 501, then 491 .. 1, and to timestep 0."""
    made = denoised(scheduler_of(DDIMScheduler), StaticTransition(510, BEFORE, steps_after=100))
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    grid = [*range(951, 500, -50), *range(491, 0, -10), 0]
    latents, unconditional, conditional = inputs(list(range(COUNT)))
    network = Network()
    for t, after in zip(grid, grid[1:], strict=False):
        u = network(latents, torch.tensor(t), unconditional)[0]
        c = network(latents, torch.tensor(t), conditional)[0]
        noise = u + (FULL if t <= 510 else BEFORE) * (c - u)
        clean = (latents - math.sqrt(1 - kept[t]) * noise) / math.sqrt(kept[t])
        latents = math.sqrt(kept[after]) * clean + math.sqrt(1 - kept[after]) * noise
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
        expected = by_hand(make, row, switch, None)
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
        expected = by_hand(make, row, dynamic, 50, ramp=170)
        compare(made, row, expected)
        assert expected.left_at is None or len({round(scale, 3) for scale in expected.scales}) > 5


@pytest.mark.parametrize("rule", [StaticTransition, DynamicTransition])
@pytest.mark.parametrize("options", [{"steps_after": 50}, {"restart_solver": True}])
def test_gated_samples_go_on_from_the_first_step(rule: type, options: dict) -> None:
    """The samples differ in their first difference: that of the first is least, of the last greatest."""

    def make():
        return scheduler_of(DPMSolverMultistepScheduler)

    first = denoised(make(), DynamicTransition(BEFORE)).difference_rms[:, 0]
    assert first.tolist() == sorted(first.tolist())
    gate = (first[1] + first[2]).item() / 2
    made = denoised(make(), rule(guidance_before=BEFORE, gate=gate, **options))
    for row in range(COUNT):
        late = static(500) if rule is StaticTransition else dynamic
        switch = static(1000) if row < 2 else late
        expected = by_hand(make, row, switch, options.get("steps_after"))
        assert (expected.left_at == 0) == (row < 2)
        compare(made, row, expected)


def first_pass(scheduler, number: int) -> int:
    """The step at which 1 - cos of successive latents has its first minimum, at one scale; 5 if nowhere."""
    (latents, unconditional, conditional), curve = inputs([number]), []
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        u, c = Network()(latents, t, unconditional)[0], Network()(latents, t, conditional)[0]
        before = latents.double().flatten()
        latents = scheduler.step(u + BEFORE * (c - u), t, latents, return_dict=False)[0]
        after = latents.double().flatten()
        curve.append(1 - (before @ after / before.norm() / after.norm()).item())
    minima = [i for i in range(1, STEPS - 1) if curve[i - 1] > curve[i] < curve[i + 1]]
    assert minima[:1] != [1]
    return minima[0] if minima else 5


@pytest.mark.parametrize("options", [{"steps_after": 50}, {"restart_solver": True}])
def test_a_two_pass_transition_goes_on_too(options: dict) -> None:
    """From the index that its first pass picks; the evaluations of that pass come on top."""

    def make():
        return scheduler_of(DPMSolverMultistepScheduler)

    made = denoised(make(), TwoPassTransition(BEFORE, **options))
    for row in range(COUNT):
        chosen = first_pass(make(), row)
        expected = by_hand(
            make, row, lambda index, t, curve, at=chosen: index == at, options.get("steps_after")
        )
        assert made.transition_timestep[row] == expected.timesteps[chosen]
        assert torch.allclose(made.latents[row], expected.latents, rtol=1e-4, atol=1e-4)
        assert made.timesteps[row][taken(made, row)].tolist() == expected.timesteps
        assert made.nfe[row] == 2 * STEPS + 2 * len(expected.timesteps)


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
        expected = by_hand(make, number, switch, options.get("steps_after"), generator)
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
    made = denoise(network, scheduler, *inputs([0, 1, 2, 3, 4]), 1.0, STEPS, [rule])
    assert made.nfe.tolist() == network.rows
    for row, at in enumerate(made.transition_timestep.tolist()):
        own = made.timesteps[row][taken(made, row)].tolist()
        watched = [t for t in own if math.isnan(at) or t >= at]
        assert made.nfe[row] == len(own) + len(watched)
    assert made.transition_timestep.isfinite().tolist() == [True] * 4 + [False]


# Refusals, before the network is called


class Never:
    """A network that must not be called."""

    def __call__(self, *given, **options) -> tuple[Tensor]:
        raise AssertionError("called")


def refused(scheduler, rules: list[GuidanceRule], message: str, steps: int = STEPS) -> None:
    with pytest.raises(ValueError, match=message):
        denoise(Never(), scheduler, *inputs([0]), FULL, steps, rules)


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
    message = f"a grid of {steps_after} DDIM steps does not meet timestep .*multiple"
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


# Latents that are not finite


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
