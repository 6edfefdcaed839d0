"""Detectors of the noise alone: against linear predictors, finite differences, and the loop's own steps."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, PNDMScheduler
from torch import Tensor

from infer.denoising.hooks import DenoisingStep, GuidanceRule
from infer.denoising.loop import denoise
from infer.detect.early_steps import EarlyChange
from infer.detect.noise_scores import agreement, alignment, anisotropy, decoupled_hessian, mirrored, sharpness
from infer.detect.rates import rate_intervals, true_positive_rate
from tests.infer.denoising.loops import inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (2, 3, 3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(matrix: Tensor, x: Tensor) -> Tensor:
    return (x.flatten(1) @ matrix.T).view_as(x)


def test_sharpness_of_a_linear_predictor() -> None:
    """s = -A x / sigma: J s = A A x / sigma^2, for one sample and for each of a batch."""
    of_c, of_u, x, sigma = random(18, 18, seed=1), random(18, 18, seed=2), random(3, *SHAPE), 0.7
    found = sharpness(lambda x: (linear(of_u, x), linear(of_c, x)), x, sigma)
    a = (of_c - of_u).numpy()
    expected = [np.square(a @ a @ row / sigma**2).mean() for row in x.flatten(1).numpy()]
    assert found.numpy() == pytest.approx(expected, rel=1e-5)
    alone = sharpness(lambda x: (linear(of_u, x), linear(of_c, x)), x[1:2], sigma)
    assert alone.numpy() == pytest.approx(expected[1:2], rel=1e-5)


def test_the_agreement_of_guesses_is_the_mean_cosine_of_their_pairs() -> None:
    """1 of the same up to size and colour, -1/7 of eight that cancel out, by hand of others."""
    one = random(3, *SHAPE)
    same = [(n + 1) * one + random(3, 2, 1, 1, seed=n) for n in range(8)]
    assert agreement(same).numpy() == pytest.approx(1, abs=1e-5)
    assert agreement([one, -one] * 4).numpy() == pytest.approx(-1 / 7, abs=1e-5)
    different = [random(3, *SHAPE, seed=n) for n in range(5)]
    flat = np.stack([(d - d.mean((2, 3), keepdim=True)).flatten(1).numpy() for d in different])
    flat /= np.linalg.norm(flat, axis=2, keepdims=True)
    pairs = [(flat[a] * flat[b]).sum(1) for a in range(5) for b in range(a)]
    assert agreement(different).numpy() == pytest.approx(np.mean(pairs, 0), abs=1e-5)


def test_eight_noises_of_one_are_different() -> None:
    eight = torch.stack(mirrored(random(1, 4, 8, 8)))
    assert (
        torch.allclose(eight.sum(0), torch.zeros(1).double()) and len({x[0, 0, 0].sum() for x in eight}) == 8
    )


def test_the_decoupled_hessian_of_linear_predictors() -> None:
    """grad |A x|^2 / 2 = A^T A x; a predictor that is the same with and without the prompt has none."""
    of_c, of_u, x = random(18, 18, seed=1), random(18, 18, seed=2), random(3, *SHAPE)
    found = decoupled_hessian(lambda x: (linear(of_u, x), linear(of_c, x)), x)
    a, b = of_c.numpy(), of_u.numpy()
    expected = [np.square(a.T @ a @ row - b.T @ b @ row).mean() for row in x.flatten(1).numpy()]
    assert found.numpy() == pytest.approx(expected, rel=1e-4) and not x.requires_grad
    assert decoupled_hessian(lambda x: (linear(of_c, x), linear(of_c, x)), x).numpy() == pytest.approx(0)


def test_the_derivative_of_a_unet(unet: torch.nn.Module) -> None:
    """Forwards through attention, against central differences; no weight is left with a gradient."""
    x, u, c = inputs(2)

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        output = unet(torch.cat([x, x]), 981, encoder_hidden_states=torch.cat([u, c])).sample
        return output.chunk(2)

    def score(x: Tensor) -> Tensor:
        first, second = predict(x)
        return -(second - first) / 0.9

    with torch.no_grad():
        step = 0.02 * score(x) / score(x).norm()
        change = (score(x + step) - score(x - step)) / 2 * (score(x).norm() / 0.02)
    expected = change.square().mean((1, 2, 3)).numpy()
    assert sharpness(predict, x, 0.9).numpy() == pytest.approx(expected, rel=0.02)
    assert all(weight.grad is None for weight in unet.parameters())


def test_anisotropy_by_hand() -> None:
    """Two channels at two places: the difference is along eps_u at one, and across it at the other."""
    u = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])
    c = u + torch.tensor([[[[3.0, 4.0]], [[0.0, 0.0]]]])
    aligned = alignment(u, c)
    assert aligned.tolist() == [0.5]  # (1 + 0) / 2
    assert anisotropy(aligned, u, c).tolist() == [5.5]  # and the norm of (3, 4)


class Latents(GuidanceRule):
    """Keeps what the model is given."""

    def begin(self, batch_size: int, device: torch.device) -> None:
        self.steps: list[tuple[float, float, float, Tensor]] = []

    def observe(self, step: DenoisingStep) -> None:
        self.steps.append((step.timestep, step.alpha, step.sigma, step.latents))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind, chosen", [
    (DDIMScheduler, [0, 1, 2]), (PNDMScheduler, [0, 1, 3]), (HeunDiscreteScheduler, [0, 1, 3]),
])  # fmt: skip
def test_dsm_is_the_change_of_the_conditional_prediction(
    unet: torch.nn.Module, kind: type, chosen: list[int], prediction: str
) -> None:
    """Along the run with guidance; PNDM and Heun take the second timestep twice."""
    scheduler = scheduler_of(kind, prediction, **({"skip_prk_steps": True} if kind is PNDMScheduler else {}))
    early, latents = EarlyChange(), Latents()
    noise, u, c = inputs(3)
    denoise(unet, scheduler, noise, u, c, 5.0, 8, [early, latents])
    predictions = []
    for t, alpha, sigma, x in (latents.steps[index] for index in chosen):
        with torch.no_grad():
            output = unet(x, t, encoder_hidden_states=c).sample
        predictions.append(output if prediction == "epsilon" else alpha * output + sigma * x)
    found = early.scores()
    for name, one, other in (("dsm_01", 0, 1), ("dsm_12", 1, 2)):
        expected = (predictions[other] - predictions[one]).square().mean((1, 2, 3)).numpy()
        assert found[name] == pytest.approx(expected, rel=2e-3, abs=1e-7)


def test_true_positive_rates_and_their_intervals() -> None:
    """3 of 100 ordinary scores may be above: above 96 lie 40 % of the memorized ones."""
    ordinary, memorized = np.arange(100.0), np.repeat([50.0, 98.5], [60, 40])
    assert true_positive_rate(memorized, ordinary, 0.03) == 0.4
    assert true_positive_rate(memorized, ordinary, 0.005) is None
    (low, high), undefined = rate_intervals(memorized, ordinary, [0.03, 0.005])
    assert 0.25 < low < 0.32 and 0.48 < high < 0.55 and np.isnan(undefined).all()
    (ends,) = rate_intervals(memorized[:1], ordinary, [0.03])
    assert np.isnan(ends).all()


def test_the_interval_knows_that_the_threshold_is_uncertain() -> None:
    """Memorized scores between the two highest ordinary ones are found or not by the draw of those."""
    ordinary, memorized = np.append(np.zeros(99), 9.0), np.full(100, 5.0)
    assert true_positive_rate(memorized, ordinary, 0.01) == 1
    ((low, high),) = rate_intervals(memorized, ordinary, [0.01])
    assert (low, high) == (0, 1) and math.isfinite(low)
