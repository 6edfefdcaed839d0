"""The mitigations in a world whose exact score, trajectory and attraction basin are known in closed form."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.hooks import DenoisingStep, GuidanceRule, both
from infer.denoising.loop import Denoised, denoise
from tests.gaussian_world import GaussianWorld, Prompt, embeddings
from tests.infer.denoising.loops import KEPT, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, FULL, SHAPE = 50, 3.0, (4, 4, 4)
KINDS = [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler]
PREDICTIONS = ["epsilon", "v_prediction"]


def point(random: np.random.Generator, size: float) -> Tensor:
    """A point of this root mean square."""
    values = random.standard_normal(SHAPE)
    return torch.tensor(values * size / np.sqrt((values**2).mean()))


def make_prompts() -> list[Prompt]:
    """Four memorized prompts whose basins end at different times, and two ordinary ones."""
    random = np.random.default_rng(0)
    memorized = [
        Prompt(point(random, 0.5), point(random, 1.0), log_odds, spread)
        for log_odds, spread in [(3.0, 1.0), (6.0, 1.0), (9.0, 1.0), (12.0, 0.9)]
    ]
    return [*memorized, Prompt(point(random, 0.5)), Prompt(point(random, 0.5), spread=0.9)]


PROMPTS = make_prompts()
MEMORIZED, ORDINARY = [0, 1, 2, 3], [4, 5]
NOISE = torch.tensor(np.random.default_rng(1).standard_normal((6, *SHAPE)), dtype=torch.float32)


def made_of(
    prompts: list[int], rules: list[GuidanceRule] = (), kind: type = DDIMScheduler,
    prediction: str = "epsilon", scale: float = FULL,
) -> Denoised:  # fmt: skip
    scheduler = scheduler_of(kind, prediction)
    world = GaussianWorld(scheduler, PROMPTS)
    return denoise(world, scheduler, NOISE[prompts], *embeddings(prompts), scale, STEPS, rules)


# The reference: numpy, double precision, one sample, Stable Diffusion's noise schedule written out


TIMESTEPS = [1 + 20 * (STEPS - 1 - index) for index in range(STEPS)]
THETA = np.arccos(np.sqrt([*KEPT[TIMESTEPS], KEPT[0]]))  # alpha = cos, sigma = sin; DDIM ends at timestep 0


def array(x: Tensor) -> np.ndarray:
    return x.double().numpy().ravel()


def log_odds(prompt: Prompt, x: np.ndarray, alpha: float) -> float:
    """Of the memorized mode against the rest, given x_t: prior odds and the densities of the two."""
    if prompt.memorized is None:
        return -np.inf
    return prompt.log_odds + sum(
        sign * (-0.5 * len(x) * np.log(variance) - ((x - alpha * array(mean)) ** 2).sum() / (2 * variance))
        for sign, mean, variance in [
            (1, prompt.memorized, alpha**2 * prompt.narrow**2 + 1 - alpha**2),
            (-1, prompt.rest, alpha**2 * prompt.spread**2 + 1 - alpha**2),
        ]
    )


def conditional_noise(prompt: Prompt, x: np.ndarray, theta: float) -> np.ndarray:
    """(x_t - alpha E[x_0 | x_t]) / sigma, with the mean of each mode given x_t by the Gaussian posterior."""
    alpha, sigma = np.cos(theta), np.sin(theta)

    def mean(mode: Tensor, width: float) -> np.ndarray:
        gain = alpha * width**2 / (alpha**2 * width**2 + sigma**2)
        return array(mode) + gain * (x - alpha * array(mode))

    clean = mean(prompt.rest, prompt.spread)
    if prompt.memorized is not None:
        share = np.exp(-np.logaddexp(0, -log_odds(prompt, x, alpha)))
        clean = share * mean(prompt.memorized, prompt.narrow) + (1 - share) * clean
    return (x - alpha * clean) / sigma


def unguided(x: np.ndarray) -> np.ndarray:
    """The DDIM latents before each step, in closed form: noise sigma x_t turns the latents by the angle."""
    return x * np.cumprod([1, *np.cos(THETA[:-1] - THETA[1:])])[:, None]


def curve_of(number: int) -> list[float]:
    """d_t along the unguided trajectory."""
    return [
        np.sqrt(((conditional_noise(PROMPTS[number], x, theta) - np.sin(theta) * x) ** 2).mean())
        for x, theta in zip(unguided(array(NOISE[number]))[:-1], THETA[:-1], strict=True)
    ]


def exit_of(number: int) -> int:
    """The first step at which the unguided trajectory belongs to the rest: the end of the basin."""
    odds = [
        log_odds(PROMPTS[number], x, np.cos(theta))
        for x, theta in zip(unguided(array(NOISE[number]))[:-1], THETA[:-1], strict=True)
    ]
    assert odds[0] > 0 and sum(a > 0 > b for a, b in zip(odds, odds[1:], strict=False)) == 1
    return next(index for index, value in enumerate(odds) if value < 0)


def fired(curve: list[float]) -> int | None:
    """The three-point rule."""
    return next(
        (i for i in range(2, len(curve)) if curve[i - 2] > curve[i - 1] and curve[i] > curve[i - 1]), None
    )


def by_hand(number: int, scales: list[float]) -> tuple[np.ndarray, list[float]]:
    """DDIM at one scale for each step: the final latents, and the differences on the way."""
    x, differences = array(NOISE[number]), []
    for theta, after, scale in zip(THETA[:-1], THETA[1:], scales, strict=True):
        difference = conditional_noise(PROMPTS[number], x, theta) - np.sin(theta) * x
        differences.append(np.sqrt((difference**2).mean()))
        noise = np.sin(theta) * x + scale * difference
        x = np.cos(after) * (x - np.sin(theta) * noise) / np.cos(theta) + np.sin(after) * noise
    return x, differences


def distance(latents: Tensor, number: int) -> float:
    """Root mean square from the prompt's memorized point."""
    return np.sqrt(((array(latents) - array(PROMPTS[number].memorized)) ** 2).mean())


# The world is what it says


@pytest.mark.parametrize("timestep", [981, 700, 400.5, 100, 1])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_world_is_exact(timestep: float, prediction: str) -> None:
    """In one dimension, against E[noise | x_t] by quadrature over x_0."""
    prompt = Prompt(*torch.tensor([-0.7, 1.1]).view(2, 1, 1, 1), log_odds=0.4, spread=0.8, narrow=0.1)
    scheduler = scheduler_of(prediction=prediction)
    world = GaussianWorld(scheduler, [prompt])
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    below = int(timestep)
    ratios = np.sqrt((1 - KEPT) / KEPT)
    ratio = ratios[below] + (timestep - below) * (ratios[below + 1] - ratios[below])
    alpha, sigma = 1 / np.sqrt(1 + ratio**2), ratio / np.sqrt(1 + ratio**2)

    def normal(z: np.ndarray, width: float) -> np.ndarray:
        return np.exp(-0.5 * (z / width) ** 2) / width

    grid = np.linspace(-8, 8, 200_001)
    weight = 1 / (1 + np.exp(-0.4))
    for data, unconditional in [
        (normal(grid, 1.0), True),
        (weight * normal(grid - 1.1, 0.1) + (1 - weight) * normal(grid + 0.7, 0.8), False),
    ]:
        noise = (x.numpy()[:, None] - alpha * grid) / sigma
        posterior = data * normal(noise, 1.0)
        expected = (noise * posterior).sum(1) / posterior.sum(1)
        clean = (grid * posterior).sum(1) / posterior.sum(1)
        if prediction == "v_prediction":
            expected = alpha * expected - sigma * clean
        embedding = embeddings([0] * 9)[0 if unconditional else 1]
        output = world(x.view(9, 1, 1, 1), torch.tensor(timestep), encoder_hidden_states=embedding)[0]
        assert np.allclose(output.flatten().numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_without_guidance_the_latents_only_shrink(prediction: str) -> None:
    """x_T times a product of cosines, one for each DDIM step; the exact solution stays at x_T."""
    denoised = made_of(MEMORIZED, prediction=prediction, scale=0.0)
    shrunk = np.prod(np.cos(THETA[:-1] - THETA[1:]))
    assert 0.9 < shrunk < 0.98
    assert np.allclose(denoised.latents.numpy(), NOISE[MEMORIZED].numpy() * shrunk, rtol=1e-4, atol=1e-5)
    assert denoised.nfe.tolist() == [STEPS] * 4
    exact = made_of(MEMORIZED, [], DPMSolverMultistepScheduler, prediction, 0.0).latents / NOISE[MEMORIZED]
    assert (exact - 1).abs().max() < 0.01, "a second-order solver is near the exact solution"


# The attraction basin


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_guidance_from_the_start_memorizes(kind: type, prediction: str) -> None:
    """Each row ends at its own prompt's point, which is about 1.4 away from where it started."""
    denoised = made_of(MEMORIZED, [], kind, prediction)
    assert all(distance(denoised.latents[row], row) < 0.05 for row in MEMORIZED)
    assert all(distance(NOISE[row], row) > 1.2 for row in MEMORIZED)


def test_held_back_until_the_end_of_the_basin_it_does_not() -> None:
    """Guidance from step k on, for every k: memorized if the basin has not ended by then, not otherwise.

    The end is where the log odds of the memorized mode along the closed-form unguided trajectory turn
    negative. Guidance given before pulls the latents to m and keeps them there; given after, it pulls them
    towards the rest. At the first step after the end the odds can still be near even, and a scale of 3 may
    outweigh them: the switch is at the end or one step later.
    """
    ends = [exit_of(number) for number in MEMORIZED]
    assert sorted(ends) == ends and len(set(ends)) == 4 and ends[0] > 10 and ends[-1] < 40
    for first in range(ends[0] - 4, ends[-1] + 5):
        denoised = made_of(MEMORIZED, [StaticTransition(TIMESTEPS[first])])
        for row in MEMORIZED:
            away = distance(denoised.latents[row], row)
            if first < ends[row]:
                assert away < 0.05, f"guided from step {first}, inside of the basin that ends at {ends[row]}"
            elif first > ends[row]:
                assert away > 0.5, f"guided from step {first}, after the basin has ended at {ends[row]}"


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_the_basin_ends_at_the_same_timestep_for_other_solvers(kind: type) -> None:
    """Where the log odds are 0 at the exact solution x_t = x_T, found by bisection over alpha."""
    for row in MEMORIZED:
        low, high = 0.1, 0.95
        for _ in range(50):
            middle = (low + high) / 2
            inside = log_odds(PROMPTS[row], array(NOISE[row]), middle) > 0
            low, high = (middle, high) if inside else (low, middle)
        end = np.interp(-low, -np.sqrt(KEPT), np.arange(1000))
        early, late = (
            made_of([row], [StaticTransition(end + shift)], kind).latents[0] for shift in (60, -60)
        )
        assert distance(early, row) < 0.05 and distance(late, row) > 0.5


class Watching(GuidanceRule):
    """No guidance at all, but both predictions."""

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor]:
        return both(scale)

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        return torch.zeros_like(scale)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_trace_is_the_closed_form_difference(prediction: str) -> None:
    """In epsilon space for either kind of model; and up to a dynamic transition it is the same curve."""
    expected = np.array([curve_of(number) for number in range(6)])
    denoised = made_of([*MEMORIZED, *ORDINARY], [Watching()], prediction=prediction)
    assert np.allclose(denoised.difference_rms.numpy(), expected, rtol=1e-3)
    denoised = made_of([*MEMORIZED, *ORDINARY], [DynamicTransition()], prediction=prediction)
    for row, curve in enumerate(expected):
        until = fired(curve)
        traced = denoised.difference_rms[row].numpy()
        assert np.allclose(traced[: until and until + 1], curve[: until and until + 1], rtol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_dynamic_transition_finds_the_end_of_the_basin(prediction: str) -> None:
    """It fires where the three-point rule fires on the closed-form curve, and nothing is memorized then.

    Inside of the basin d_t rises, at its end it drops to that of an ordinary prompt, which rises until
    alpha = sigma (timestep 354) and falls from there. So a basin that ends before has its minimum right after
    its end; one that ends later, like that of the fourth prompt, has none and the rule never fires. Nor does
    it for ordinary prompts, whose curve has a maximum only: they stay without guidance to the end.
    """
    denoised = made_of([*MEMORIZED, *ORDINARY], [DynamicTransition()], prediction=prediction)
    expected = [fired(curve_of(number)) for number in range(6)]
    assert expected[3:] == [None] * 3 and None not in expected[:3]
    timesteps = [np.nan if step is None else TIMESTEPS[step] for step in expected]
    assert np.array_equal(denoised.transition_timestep.numpy(), timesteps, equal_nan=True)
    for row in MEMORIZED:
        assert distance(denoised.latents[row], row) > 0.5
    for row in MEMORIZED[:3]:
        assert 1 <= expected[row] - exit_of(row) <= 2
        guided = by_hand(row, [0.0] * expected[row] + [FULL] * (STEPS - expected[row]))[0]
        assert np.allclose(array(denoised.latents[row]), guided, atol=1e-3)
    shrunk = np.prod(np.cos(THETA[:-1] - THETA[1:]))
    assert np.allclose(denoised.latents[3:].numpy(), NOISE[3:].numpy() * shrunk, rtol=1e-4, atol=1e-5)


def test_opposite_guidance_leaves_the_basin_sooner() -> None:
    """At the step the three-point rule picks on a float64 trajectory at that scale."""
    transitions = {}
    for before in (0.0, -2.0):
        denoised = made_of([*MEMORIZED, *ORDINARY], [DynamicTransition(before)])
        expected = [fired(by_hand(number, [before] * STEPS)[1]) for number in range(6)]
        timesteps = [np.nan if step is None else TIMESTEPS[step] for step in expected]
        assert np.array_equal(denoised.transition_timestep.numpy(), timesteps, equal_nan=True)
        assert all(distance(denoised.latents[row], row) > 0.5 for row in MEMORIZED)
        transitions[before] = denoised.transition_timestep[MEMORIZED]
    assert (transitions[-2.0] > transitions[0.0].nan_to_num(-1)).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_gate_lets_ordinary_prompts_through(dynamic: bool, prediction: str) -> None:
    """A memorized prompt's first difference is twice an ordinary one's: its point is twice as far away."""
    first = [curve_of(number)[0] for number in range(6)]
    gate = 0.055
    assert max(first[4:]) < 0.75 * gate and min(first[:4]) > 1.25 * gate
    rule = DynamicTransition(gate=gate) if dynamic else StaticTransition(TIMESTEPS[30], gate=gate)
    order = [4, 0, 1, 5, 2, 3]
    denoised = made_of(order, [rule], prediction=prediction)
    switches = [fired(curve_of(number)) if dynamic else 30 for number in MEMORIZED] + [0, 0]
    switches = [STEPS if step is None else step for step in switches]
    for row, number in enumerate(order):
        scales = [0.0] * switches[number] + [FULL] * (STEPS - switches[number])
        assert denoised.guidance_scale[row].tolist() == scales
        latents, differences = by_hand(number, scales)
        assert np.allclose(array(denoised.latents[row]), latents, atol=2e-3)
        computed = np.isfinite(denoised.difference_rms[row].numpy())
        assert computed.tolist() == [dynamic or index == 0 or scale > 0 for index, scale in enumerate(scales)]
        assert np.allclose(
            denoised.difference_rms[row].numpy()[computed], np.array(differences)[computed], rtol=2e-3
        )
        assert denoised.nfe[row] == STEPS + computed.sum()
