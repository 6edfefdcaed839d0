"""DivIn: closed forms of its Langevin step, both prediction types, its cost, and half precision."""

import copy

import pytest
import torch

from callbacks.mitigations.noise.divin import DivIn, image_difference, langevin
from infer.denoising.loop import denoise
from tests.callbacks.mitigations.peer_runs import SCALE, STEPS, assert_rows_are_independent, run
from tests.gaussian_world import GaussianWorld, Prompt, embeddings
from tests.infer.denoising.loops import scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")


def chain(difference, beta: float, eta: float, steps: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=random)
    for _ in range(steps):
        x = langevin(x, difference, torch.randn(x.shape, generator=random), beta, eta)
    return x


def test_without_a_gradient_the_noise_stays_a_standard_normal() -> None:
    """One step: mean 0, variance (1 - eta)^2 + 2 eta; many: 1 / (1 - eta / 2)."""
    for steps, variance in ((1, 1.0025), (200, 1 / 0.975)):
        x = chain(lambda x: 0 * x, 0.6, 0.05, steps)
        assert abs(x.mean()) < 0.03 and abs(x.var() - variance) < 0.03


def test_the_chain_ends_in_its_density() -> None:
    """exp(-beta ||a x||^2 - ||x||^2 / 2): variance 1 / (1 + 2 beta a^2)."""
    x = chain(lambda x: 2 * x, 0.6, 0.01, 400)
    assert abs(x.var() - 1 / (1 + 2 * 0.6 * 4)) < 0.02


def test_one_step_of_a_linear_difference() -> None:
    """grad ||A x||^2 = 2 A' A x, of each row on its own."""
    random = torch.Generator().manual_seed(0)
    a = torch.randn(5, 5, generator=random)
    x, xi = torch.randn(2, 3, 5, generator=random)
    expected = x - 0.05 * (0.6 * 2 * x @ a.T @ a + x) + 0.1**0.5 * xi
    assert torch.allclose(langevin(x, lambda x: x @ a.T, xi, 0.6, 0.05), expected, atol=1e-5)


def test_the_difference_of_images_of_each_kind_of_model() -> None:
    """x0_c - x0_u from noise, v, and the velocity of a flow (alpha = 1 - sigma)."""
    random = torch.Generator().manual_seed(0)
    x, c, u = torch.randn(3, 2, 4, generator=random)
    alpha, sigma = 0.6, 0.8
    epsilon = {k: (x - alpha * image) / sigma for k, image in (("c", c), ("u", u))}
    v = {k: (alpha * x - image) / sigma for k, image in (("c", c), ("u", u))}
    flow = {k: (x - image) / 0.3 for k, image in (("c", c), ("u", u))}  # x = 0.7 x0 + 0.3 noise
    for outputs, levels, kind in (
        (epsilon, (alpha, sigma), "epsilon"),
        (v, (alpha, sigma), "v_prediction"),
        (flow, (0.7, 0.3), "flow_prediction"),
    ):
        assert torch.allclose(image_difference(outputs["c"] - outputs["u"], *levels, kind), c - u, atol=1e-5)


def test_models_that_predict_noise_and_v_start_from_the_same_noise() -> None:
    random = torch.Generator().manual_seed(0)
    prompts = [
        Prompt(torch.randn(4, 4, 4, generator=random), torch.randn(4, 4, 4, generator=random), log_odds=6.0)
        for _ in range(2)
    ]
    noise, starts = torch.randn(2, 4, 4, 4, generator=random), []

    class Kept(DivIn):
        def initial_noise(self, batch):
            starts.append(super().initial_noise(batch))
            return starts[-1]

    for prediction in ("epsilon", "v_prediction"):
        scheduler = scheduler_of(prediction=prediction)
        denoise(GaussianWorld(scheduler, prompts), scheduler, noise, *embeddings([0, 1]), SCALE, 4, [Kept()])
    assert torch.allclose(*starts, atol=1e-4) and (starts[0] - noise).abs().max() > 0.1


def test_cost_and_seeds(pipe) -> None:
    """Two rows with gradients a Langevin step; xi is the sample's own; the UNet keeps no gradient."""
    result = assert_rows_are_independent(pipe, lambda: [DivIn(steps=2)])
    assert result.nfe.tolist() == [2 * STEPS + 4] * 3 and result.gradient_passes.tolist() == [4] * 3
    assert all(weight.grad is None for weight in pipe.unet.parameters())
    assert not result.latents.requires_grad


def test_half_precision(pipe) -> None:
    """Weights in bfloat16, the leaf in single precision."""
    half, noises = copy.copy(pipe), []
    half.unet, half.text_encoder = (copy.deepcopy(p).bfloat16() for p in (pipe.unet, pipe.text_encoder))

    class Kept(DivIn):
        def initial_noise(self, batch):
            noises.append((batch.noise, super().initial_noise(batch)))
            return noises[-1][1]

    for each in (pipe, half):
        run(each, Kept(beta=5.0))
    (start, single), (half_start, rounded) = noises
    assert rounded.dtype == torch.bfloat16 and rounded.isfinite().all()
    assert (half_start - start).abs().max() < 0.05 and (rounded - single).abs().max() < 0.1
