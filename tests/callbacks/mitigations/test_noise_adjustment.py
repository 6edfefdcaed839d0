"""Han et al.: the closed forms of both methods on a linear model, and what runs after them."""

import pytest
import torch

from callbacks.mitigations.noise.noise_adjustment import NoiseAdjustment
from callbacks.mitigations.noise.noise_optimization import NoiseOptimization
from infer.denoising.hooks import rms
from infer.denoising.loop import denoise, prepare
from tests.callbacks.mitigations.inputs import Linear, changed, linear_inputs, matrix
from tests.infer.denoising.loops import inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_adjustment_is_its_closed_form() -> None:
    """With d(x) = A x: x <- x - gamma rho A A x / RMS(A x), twice, per sample."""
    a, given = matrix(), linear_inputs()
    batch = changed(Linear(a), NoiseAdjustment(rho=0.39, gamma=0.7, iterations=2), given=given)
    for row in range(3):
        x = given[0][row].flatten()
        for _ in range(2):
            x = x - 0.7 * 0.39 * (a @ a @ x) / (a @ x).square().mean().sqrt()
        assert torch.allclose(batch.noise[row].flatten(), x, atol=1e-4)
    assert batch.nfe.tolist() == [8] * 3 and batch.gradient_passes.tolist() == [0] * 3


def test_the_adjusted_run_has_no_guidance_before_its_transition(unet: torch.nn.Module) -> None:
    """t > 900: the steps 951 and 901 of twenty; one evaluation each."""
    run = denoise(unet, scheduler_of(), *inputs(3), 7.5, 20, [NoiseAdjustment(iterations=1)])
    expected = [0.0 if t > 900 else 7.5 for t in run.timesteps[0].tolist()]
    assert expected.count(0.0) == 2 and run.guidance_scale.tolist() == [expected] * 3
    assert run.nfe.tolist() == [4 + 2 * 1 + 18 * 2] * 3
    assert run.transition_timestep.tolist() == [851] * 3


def test_a_transition_outside_of_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="never hold guidance back"):
        prepare(scheduler_of(), 7.5, 4, [NoiseAdjustment()])


def test_the_optimized_noise_meets_the_target(unet: torch.nn.Module) -> None:
    """At the first step of the run, with full guidance from there on."""
    scheduler, given = scheduler_of(prediction="v_prediction"), inputs(3)
    target = 0.9 * denoise(unet, scheduler, *given, 7.5, 4).difference_rms[:, 0].min().item()
    run = denoise(unet, scheduler, *given, 7.5, 4, [NoiseOptimization(target, 0.05, 100)])
    assert (run.difference_rms[:, 0] <= 1.001 * target).all()
    assert (run.guidance_scale == 7.5).all() and run.transition_timestep is None
    assert (run.nfe == 8 + run.gradient_passes + 2).all()


def test_an_optimizers_step_is_adamws() -> None:
    """The first one is the learning rate along the signs of A^T A x, after a decay of 1 % of it."""
    a, given = matrix(), linear_inputs()
    batch = changed(Linear(a), NoiseOptimization(1e-9, 0.05, 1), given=given)
    x = given[0].flatten(1)
    expected = x * (1 - 0.05 * 0.01) - 0.05 * (x @ a.T @ a).sign()
    assert rms(batch.noise.flatten(1) - expected).max() < 1e-3
    assert batch.gradient_passes.tolist() == [2] * 3
