"""The critical scale where it is known: of Gaussian data, of one narrow mode of a mixture, and of a UNet."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from infer.basin.critical_scale import Criterion, critical_scale
from infer.denoising.denoiser import Denoiser
from tests.gaussian_world import GaussianWorld, Prompt, embeddings
from tests.infer.denoising.loops import scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE, CRITERION = (4, 4, 4), Criterion()
FINE = np.geomspace(0.03, 14, 140).tolist()


class RowByRow:
    """The closed-form world takes one timestep a call; a UNet takes one for each row."""

    def __init__(self, world: GaussianWorld):
        self.world = world

    def __call__(
        self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool
    ) -> tuple[Tensor]:
        rows = zip(x.split(1), t, encoder_hidden_states.split(1), strict=True)
        return (torch.cat([self.world(row, time, embedding)[0] for row, time, embedding in rows]),)


def world(*prompts: Prompt, prediction: str = "epsilon") -> Denoiser:
    scheduler = scheduler_of(prediction=prediction)
    return Denoiser(RowByRow(GaussianWorld(scheduler, [*prompts])), scheduler)


def images(count: int) -> Tensor:
    return torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(1))


def of_a_gaussian(share: float, iterations: int, spread: float = 1.0) -> float:
    """D moves towards the mean n: after K iterations 1 - rho^K of the way, rho = spread^2 / (spread^2 +
    sigma^2). x escapes once that is `share` of it."""
    return spread * math.sqrt((1 - share) ** (-1 / iterations) - 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("iterations, tolerance, local", [(16, 0.25, 0.1), (1, 0.5, 0.25), (64, 0.1, 0.1)])
def test_of_standard_normal_data(prediction: str, iterations: int, tolerance: float, local: float) -> None:
    """Without a caption: the same for every image and place, and .135 by the published settings."""
    denoise = world(Prompt(images(1)[0]), prediction=prediction)
    criterion = Criterion(iterations, tolerance, local)
    found = critical_scale(denoise, images(3), embeddings([0] * 3)[0], FINE, criterion)
    expected, expected_at = of_a_gaussian(tolerance, iterations), of_a_gaussian(local, iterations)
    assert found.whole.numpy() == pytest.approx(expected, rel=3e-3)
    assert found.local.numpy() == pytest.approx(expected_at, rel=0.03)
    if iterations == 16:
        assert expected == pytest.approx(0.1347, abs=1e-4)


def test_the_map_shows_what_the_caption_knows() -> None:
    """Data around an image whose upper half is x: that half never escapes, the lower one in closed form."""
    x, other = images(2)
    mean = torch.cat([x[:, :2], other[:, 2:]], 1)
    denoise = world(Prompt(mean, spread=0.5))
    found = critical_scale(denoise, x[None], embeddings([0])[1], FINE, CRITERION)
    assert found.local[0, :2].numpy() == pytest.approx(FINE[-1])
    away, size = (x - mean)[:, 2:].norm(dim=0), x[:, 2:].norm(dim=0)
    for u in range(8):
        share = float(0.1 * size.flatten()[u] / away.flatten()[u])
        expected = max(FINE[0], of_a_gaussian(share, 16, 0.5))
        assert found.local[0, 2:].flatten()[u] == pytest.approx(expected, rel=0.03)
    share = float(0.25 * x.norm() / away.norm())
    assert found.whole[0] == pytest.approx(of_a_gaussian(share, 16, 0.5), rel=3e-3)


def by_bisection(log_odds: float, distance: float, size: float) -> float:
    """Of the point m among two points, by the one coordinate a of y = m + a (n - m): the fraction of the way
    to n is the weight of n, one minus sigmoid(log odds + distance^2 (1 - 2 a) / (2 sigma^2))."""
    low, high = 0.01, 100.0
    for _ in range(60):
        sigma, a, largest = math.sqrt(low * high), 0.0, 0.0
        for _ in range(CRITERION.iterations):
            odds = log_odds + distance**2 * (1 - 2 * a) / 2 / sigma**2
            a = 1 / (1 + math.exp(min(odds, 700)))
            largest = max(largest, a * distance)
        low, high = (sigma, high) if largest <= CRITERION.tolerance * size else (low, sigma)
    return low


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_of_a_memorized_point_the_width_grows_with_distance_and_with_the_logarithm_of_copies(
    prediction: str,
) -> None:
    """d / sqrt(2 log(1 / mass)) to a quarter, and by iterating the exact posterior of two points."""
    m, away = images(2)
    prompts = [
        Prompt(m + scale * away, m, math.log(mass), spread=1e-3, narrow=1e-3)
        for scale, mass in ((1.0, 1e-6), (2.0, 1e-6), (1.0, 1e-3))
    ]
    denoise = world(*prompts, prediction=prediction)
    found = critical_scale(denoise, m.expand(3, -1, -1, -1), embeddings([0, 1, 2])[1], FINE, CRITERION).whole
    for sigma, prompt in zip(found.tolist(), prompts, strict=True):
        distance = float((prompt.rest - m).norm())
        assert sigma == pytest.approx(by_bisection(prompt.log_odds, distance, float(m.norm())), rel=0.01)
        assert sigma == pytest.approx(distance / math.sqrt(-2 * prompt.log_odds), rel=0.25)
    assert found[1] / found[0] == pytest.approx(2, rel=0.1) and found[2] > 1.2 * found[0]


def test_an_image_that_escapes_everywhere_is_given_no_further_evaluations() -> None:
    """And a batch gives each image what it has alone, with its own number of UNet rows."""
    x, denoise = images(3), world(Prompt(images(2)[1], spread=0.3), Prompt(images(1)[0], spread=2.0))
    embedding = embeddings([0, 1, 1])[1]
    levels = [0.1, 0.3, 0.9, 2.7, 8.1]
    batch = critical_scale(denoise, x, embedding, levels, CRITERION)
    for row in range(3):
        alone = critical_scale(denoise, x[row : row + 1], embedding[row : row + 1], levels, CRITERION)
        assert torch.allclose(alone.whole, batch.whole[row]) and torch.equal(alone.local[0], batch.local[row])
        assert alone.evaluations[0] <= batch.evaluations[row] <= (len(levels) + 4) * CRITERION.iterations
    assert batch.evaluations[1] > batch.evaluations[0]  # image 1 stays where it is


def test_the_ends_of_the_scale_are_bounds() -> None:
    x = images(1)
    low, high = ([0.5, 1.0], [0.01, 0.02])
    denoise = world(Prompt(x[0], spread=1.0))
    assert critical_scale(denoise, x, embeddings([0])[0], low, CRITERION).whole.tolist() == [0.5]
    assert critical_scale(denoise, x, embeddings([0])[0], high, CRITERION).whole == pytest.approx(0.02)
    assert critical_scale(denoise, x, embeddings([0])[1], low, CRITERION).whole.tolist() == [1.0]


def test_what_is_not_finite_has_no_scale() -> None:
    """One image of two, at one of the levels."""

    def denoise(y: Tensor, sigma: Tensor, embedding: Tensor) -> Tensor:
        broken = (sigma > 1) & (embedding[:, 0, 0] == 1)
        return torch.where(broken.view(-1, 1, 1, 1), torch.nan, y)

    found = critical_scale(denoise, images(2), embeddings([0, 1])[1], FINE, CRITERION)
    assert found.whole.isnan().tolist() == [True, False] and found.local[0].isnan().all()
    assert found.whole[1] == pytest.approx(FINE[-1])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_unet_is_given_x_t_at_its_timestep(unet: torch.nn.Module, prediction: str) -> None:
    """At a timestep of the schedule D is the scheduler's own estimate of x_0; levels cover the schedule."""
    scheduler = scheduler_of(prediction=prediction)
    scheduler.set_timesteps(10)
    denoise, y = (
        Denoiser(unet, scheduler),
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
    )
    embedding = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(2))
    for t in (701, 101):
        kept = scheduler.alphas_cumprod[t]
        sigma = ((1 - kept) / kept).sqrt().expand(2)
        assert denoise.timestep(sigma).numpy() == pytest.approx(t, abs=1e-3)
        x_t = kept.sqrt() * y
        with torch.no_grad():
            output = unet(x_t, t, encoder_hidden_states=embedding).sample
        expected = scheduler.step(output, t, x_t).pred_original_sample
        assert torch.allclose(denoise(y, sigma, embedding), expected, atol=2e-5)
    levels = denoise.levels(24)
    assert len(levels) == 24 and levels == sorted(levels)
    assert denoise.timestep(torch.tensor([levels[0], levels[-1]])).tolist() == [0, 999]


def test_zero_terminal_snr_has_a_highest_level(unet: torch.nn.Module) -> None:
    scheduler = scheduler_of(prediction="v_prediction", rescale_betas_zero_snr=True)
    assert math.isfinite(Denoiser(unet, scheduler).levels(3)[-1])
