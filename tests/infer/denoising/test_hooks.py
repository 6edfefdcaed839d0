"""Each hook of the loop, by a rule of a few lines."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from infer.denoising.hooks import Batch, DenoisingStep, GuidanceRule, Request, both
from infer.denoising.loop import denoise, prepare
from infer.denoising.noise import initial_noise
from infer.denoising.sampling import make_images
from tests.conftest import random_pipeline
from tests.infer.denoising.loops import inputs, requests, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, STEPS, FULL = torch.device("cpu"), 6, 7.5


def run(unet: Any, *rules: GuidanceRule, given: tuple[Tensor, Tensor, Tensor] | None = None, **options):
    return denoise(
        unet, scheduler_of(prediction="v_prediction"), *(given or inputs(3)), FULL, STEPS, rules, **options
    )


class NoPrompt(GuidanceRule):
    def change_prompts(self, pipe: Any, requests: Sequence[Request]) -> Sequence[Request]:
        return [request._replace(prompt="sun") for request in requests]


def test_prompts_are_changed_for_the_model_only() -> None:
    pipe = random_pipeline()
    changed = make_images(pipe, CPU, requests(2), 16, FULL, STEPS, rules=[NoPrompt()])[1]
    sun = [request._replace(prompt="sun") for request in requests(2)]
    assert torch.equal(changed.latents, make_images(pipe, CPU, sun, 16, FULL, STEPS)[1].latents)


class Optimized(GuidanceRule):
    """One gradient step on the conditional embedding, at the first timestep: two UNet rows a sample."""

    def conditional_embedding(self, batch: Batch) -> Tensor:
        t, embedding = batch.scheduler.timesteps[0], batch.conditional_embedding.clone().requires_grad_()
        with torch.enable_grad():
            u, c = (
                batch.unet(batch.noise, t, encoder_hidden_states=e, return_dict=False)[0]
                for e in (batch.unconditional_embedding, embedding)
            )
            (gradient,) = torch.autograd.grad((c - u).pow(2).sum(), embedding)
        batch.nfe += 2
        batch.gradient_passes += 1
        return (embedding - 1e-3 * gradient).detach()


def test_an_optimized_embedding_weakens_the_difference_and_is_counted(unet: torch.nn.Module) -> None:
    plain, optimized = run(unet), run(unet, Optimized())
    assert (optimized.difference_rms[:, 0] < plain.difference_rms[:, 0]).all()
    assert optimized.nfe.tolist() == [2 * STEPS + 2] * 3 and not optimized.latents.requires_grad
    assert optimized.gradient_passes.tolist() == [1] * 3 and plain.gradient_passes.tolist() == [0] * 3


class Flipped(GuidanceRule):
    def initial_noise(self, batch: Batch) -> Tensor:
        return -batch.noise


def test_the_initial_noise_is_what_the_rule_makes_of_it(unet: torch.nn.Module) -> None:
    noise, *embeddings = inputs(3)
    expected = run(unet, given=(-noise, *embeddings))
    assert torch.equal(run(unet, Flipped()).latents, expected.latents)
    with pytest.raises(ValueError, match="two mitigations change the initial noise"):
        run(unet, Flipped(), Flipped())


class Silenced:
    """An attention processor: the former one's output for unconditional rows, 0 for the others."""

    def __init__(self, former: Any, batch: Batch):
        self.former, self.batch = former, batch

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        output = self.former(attention, hidden_states, *args, **options)
        output[self.batch.unconditional_rows :] = 0
        return output


class NoCrossAttention(GuidanceRule):
    def attention_processors(self, batch: Batch) -> dict[str, Any]:
        former = batch.unet.attn_processors
        return {name: Silenced(former[name], batch) for name in former if ".attn2." in name}


def test_attention_processors_see_which_rows_are_conditional_and_are_taken_out_again(
    unet: torch.nn.Module,
) -> None:
    """Unconditional predictions stay as they are at the first step; conditional ones lose the prompt."""
    before, plain, changed = unet.attn_processors, run(unet), run(unet, NoCrossAttention())
    noise, unconditional, conditional = inputs(3)
    other = run(unet, NoCrossAttention(), given=(noise, unconditional, conditional.flip(0)))
    assert torch.allclose(changed.unconditional_rms[:, 0], plain.unconditional_rms[:, 0])
    assert (changed.conditional_rms[:, 0] - plain.conditional_rms[:, 0]).abs().min() > 1e-5
    assert torch.allclose(other.conditional_rms[:, 0], changed.conditional_rms[:, 0])
    assert unet.attn_processors == before

    class Broken(NoCrossAttention):
        def observe(self, step: DenoisingStep) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(unet, Broken())
    assert unet.attn_processors == before


class Both(GuidanceRule):
    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor]:
        return both(scale)


class Unconditional(GuidanceRule):
    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        return torch.zeros_like(scale)


def test_needed_predictions_are_the_union_of_what_the_rules_need(unet: torch.nn.Module) -> None:
    class First(GuidanceRule):
        def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor]:
            return scale != 1, (scale != 0) | (torch.arange(3) == 0)

    plain = run(unet, Unconditional())
    for rule, nfe in ((GuidanceRule(), [6, 6, 6]), (First(), [12, 6, 6]), (Both(), [12, 12, 12])):
        denoised = run(unet, Unconditional(), rule)
        assert denoised.nfe.tolist() == nfe and torch.allclose(denoised.latents, plain.latents, atol=1e-5)


class Repelled(GuidanceRule):
    def combine(self, step: DenoisingStep, prediction: Tensor) -> Tensor:
        return prediction - FULL * (step.conditional - step.unconditional)


def test_the_combined_prediction_is_the_rules(unet: torch.nn.Module) -> None:
    expected = run(unet, Unconditional())
    assert torch.allclose(run(unet, Repelled()).latents, expected.latents, atol=1e-4)
    with pytest.raises(ValueError, match="two mitigations change the combined prediction"):
        prepare(scheduler_of(), FULL, STEPS, [Repelled(), Repelled()])


def test_a_run_before_the_run_is_the_same_run_and_moves_no_generator() -> None:
    """Of a stochastic solver; its rows are counted."""
    unet, passes = random_pipeline().unet.eval(), []

    class Twice(GuidanceRule):
        def before_denoising(self, batch: Batch) -> None:
            passes.append(batch.denoise([]))

    def generate(*rules: GuidanceRule):
        noise, generators = initial_noise([1, 2], (4, 8, 8), torch.float32)
        scheduler = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
        embeddings = inputs(2)[1:]
        return denoise(unet, scheduler, noise, *embeddings, FULL, STEPS, rules, generators)

    plain, twice = generate(), generate(Twice())
    assert torch.equal(plain.latents, twice.latents) and torch.equal(passes[0].latents, plain.latents)
    assert twice.nfe.tolist() == [4 * STEPS] * 2
