"""Wen et al.: the loss comes below the target, the first token stays, and what follows uses the embedding."""

import pytest
import torch

from callbacks.mitigations.first_step import FirstStep
from callbacks.mitigations.prompts.embedding_optimization import EmbeddingOptimization
from infer.denoising.hooks import rms
from infer.denoising.loop import denoise
from tests.callbacks.mitigations.inputs import Linear, changed, linear_inputs, matrix
from tests.infer.denoising.loops import inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = torch.arange(3)


def optimized(target: float, iterations: int = 60, **options) -> EmbeddingOptimization:
    return EmbeddingOptimization(target=target, iterations=iterations, **options)


def test_the_first_difference_comes_below_the_target(unet: torch.nn.Module) -> None:
    """Of the run itself, in epsilon space; the other predictions are ordinary guidance with the embedding."""
    scheduler, given = scheduler_of(prediction="v_prediction"), inputs(3)
    plain = denoise(unet, scheduler, *given, 7.5, 4)
    target = 0.8 * plain.difference_rms[:, 0].min().item()
    run = denoise(unet, scheduler, *given, 7.5, 4, [optimized(target)])
    assert (run.difference_rms[:, 0] <= 1.001 * target).all()
    assert (run.guidance_scale == 7.5).all()
    assert (run.nfe == 8 + 1 + run.gradient_passes + 1).all() and (run.gradient_passes > 0).all()


def test_the_first_token_stays_and_the_others_move(unet: torch.nn.Module) -> None:
    batch, before = changed(unet, optimized(1e-9, iterations=3)), inputs(3)[2]
    assert torch.equal(batch.conditional_embedding[:, 0], before[:, 0])
    assert (batch.conditional_embedding[:, 1:] != before[:, 1:]).all()
    assert batch.gradient_passes.tolist() == [3] * 3 and batch.nfe.tolist() == [4] * 3
    assert torch.equal(batch.noise, inputs(3)[0])


def test_a_sample_below_the_target_stays_as_it_is(unet: torch.nn.Module) -> None:
    batch = changed(unet, optimized(100.0))
    assert torch.equal(batch.conditional_embedding, inputs(3)[2])
    assert batch.nfe.tolist() == [2] * 3 and batch.gradient_passes.tolist() == [0] * 3


def test_a_step_is_adamws() -> None:
    """L = |mean(e)| RMS(A x): all entries fall by the learning rate, after a decay of 1 %  of it."""
    given = linear_inputs()
    batch = changed(Linear(matrix()), optimized(1e-9, 1, learning_rate=0.05), given=given)
    expected = 1 * (1 - 0.05 * 0.01) - 0.05
    assert torch.allclose(batch.conditional_embedding[:, 1:], torch.full((3, 1, 3), expected), atol=1e-5)


def test_the_whole_batch_decides_as_in_the_released_code() -> None:
    """The norm over all images, here of very unequal ones, meets the target; per sample each one does."""
    noise, unconditional, conditional = linear_inputs()
    noise = noise * torch.tensor([0.1, 1.0, 3.0]).view(3, 1, 1, 1)
    for whole in (False, True):
        batch = changed(
            Linear(matrix()), optimized(0.7, whole_batch=whole), given=(noise, unconditional, conditional)
        )
        each = rms(FirstStep(batch).difference(batch.noise, ROWS))
        assert each.square().mean().sqrt() <= 0.7
        assert (each.max() > 0.7) == whole
        assert (len(set(batch.gradient_passes.tolist())) == 1) == whole
