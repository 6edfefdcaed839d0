"""SAIL: its loss on a linear model, where it stops, and what a restart begins with."""

import pytest
import torch

from callbacks.mitigations.noise.sharpness_aware_noise import SharpnessAwareNoise
from infer.denoising.hooks import rms
from tests.callbacks.mitigations.inputs import Linear, changed, linear_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

STRENGTH, RADIUS = 0.5, 0.1
MODEL = Linear(STRENGTH * torch.eye(256))


def loss(noise: torch.Tensor, gaussianity: float = 0.05) -> torch.Tensor:
    """With d(x) = a x: d(x + r x / RMS(x)) = a x (1 + r / RMS(x)), so L = a (RMS(x) + r) + g RMS(x)."""
    return STRENGTH * (rms(noise) + RADIUS) + gaussianity * rms(noise)


def noise_of(**options) -> torch.Tensor:
    return changed(MODEL, SharpnessAwareNoise(radius=RADIUS, **options), given=linear_inputs())


@pytest.mark.parametrize("iterations", [1, 4, 30])
def test_the_noise_stops_where_the_loss_meets_the_target(iterations: int) -> None:
    """Adam lowers every entry by about 0.05 an iteration; a sample stops at the first one at the target."""
    start, target = loss(linear_inputs()[0]), 0.5
    batch = noise_of(target=target, iterations=iterations, restarts=0)
    reached = loss(batch.noise) <= target
    assert reached.all() == (iterations == 30) and (loss(batch.noise) < start).all()
    assert (loss(batch.noise) > target - 0.05).all()  # no further than a step below it
    evaluated = batch.gradient_passes // 4 + (batch.gradient_passes < 4 * iterations)
    assert (batch.nfe == 4 * evaluated).all()


def test_a_sample_below_the_target_keeps_its_noise() -> None:
    batch = noise_of(target=10.0)
    assert torch.equal(batch.noise, linear_inputs()[0])
    assert batch.nfe.tolist() == [4] * 3 and batch.gradient_passes.tolist() == [0] * 3


def test_a_restart_begins_with_noise_of_the_samples_own_seed() -> None:
    """The target then is higher, here above every loss: the fresh noise stays as it was drawn."""
    batch = noise_of(target=0.01, iterations=1, restarts=1, slack=10.0)
    generators = batch.own_generators("SharpnessAwareNoise")
    expected = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in generators])
    assert torch.equal(batch.noise, expected)
    assert batch.nfe.tolist() == [8] * 3 and batch.gradient_passes.tolist() == [4] * 3


def test_the_weight_of_gaussianity_shortens_the_noise() -> None:
    """Where the guidance says nothing: L = g RMS(x) alone."""
    silent = Linear(torch.zeros(256, 256))
    rule = SharpnessAwareNoise(target=0.04, gaussianity=0.05, iterations=50, restarts=0)
    batch = changed(silent, rule, given=linear_inputs())
    assert (0.05 * rms(batch.noise) <= 0.04).all() and (rms(batch.noise) > 0.7).all()
