"""Latents and pixels that are not finite: the step that is recorded, and the other samples."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised, denoise
from infer.denoising.sampling import make_images
from tests.conftest import random_pipeline
from tests.infer.denoising.loops import inputs, requests, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT, STEPS, BAD = 4, 12, 2


class Breaking:
    """Smooth in x; from timestep `until` on, NaN for the sample whose embedding begins with BAD."""

    def __init__(self, until: float):
        self.until = until

    def __call__(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **options) -> tuple[Tensor]:
        prompt, sample = encoder_hidden_states[:, 0, :2].view(-1, 2, 1, 1, 1).unbind(1)
        output = torch.tanh(0.5 * x + 0.1 * sample) + prompt * (0.1 + (t - 500).abs() / 1000) * (1 + x.cos())
        return (output.masked_fill((sample == BAD) & (t <= self.until), math.nan),)


def denoised(scheduler, rule: GuidanceRule, until: float = -1) -> Denoised:
    unconditional = torch.tensor([[0.0, n] for n in range(COUNT)]).view(-1, 1, 2)
    conditional = unconditional + torch.tensor([1.0, 0.0])
    return denoise(
        Breaking(until), scheduler, inputs(COUNT)[0], unconditional, conditional, 3.0, STEPS, [rule]
    )


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("rule", [GuidanceRule(), StaticTransition(500, -1.0), DynamicTransition(-1.0)])
@pytest.mark.parametrize("step", [0, 6, 11])
def test_one_failing_sample_leaves_the_others_alone(kind: type, rule: GuidanceRule, step: int) -> None:
    """`failed_at` is the step from which on its predictions are NaN; the loop continues to the end."""
    healthy = denoised(scheduler_of(kind), rule)
    broken = denoised(scheduler_of(kind), rule, healthy.timesteps[0, step].item())
    assert healthy.failed_at.tolist() == [-1] * COUNT
    assert broken.failed_at.tolist() == [step if n == BAD else -1 for n in range(COUNT)]
    others = [n for n in range(COUNT) if n != BAD]
    for name in ("latents", "guidance_scale", "difference_rms", "nfe", "transition_timestep"):
        if getattr(broken, name) is not None:
            same, other = getattr(broken, name)[others], getattr(healthy, name)[others]
            assert torch.allclose(same, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pixels_that_are_not_finite_are_a_failure_of_the_last_step(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the image they are in; latents that fail before keep their step."""
    pipe, cpu = random_pipeline(), torch.device("cpu")
    images, healthy = make_images(pipe, cpu, requests(3), 16, 3.0, 4)
    decode = pipe.vae.decode

    def overflowing(latents: Tensor, **options) -> tuple[Tensor]:
        decoded = decode(latents, **options)[0]
        decoded[1, 0, 3, 3] = value
        return (decoded,)

    monkeypatch.setattr(pipe.vae, "decode", overflowing)
    broken_images, broken = make_images(pipe, cpu, requests(3), 16, 3.0, 4)
    assert healthy.failed_at.tolist() == [-1] * 3 and broken.failed_at.tolist() == [-1, 3, -1]
    assert broken_images[1].getextrema() == ((0, 0),) * 3
    assert [broken_images[n].tobytes() for n in (0, 2)] == [images[n].tobytes() for n in (0, 2)]
    pipe.vae.post_quant_conv.bias.data.fill_(math.nan)
    assert make_images(pipe, cpu, requests(3), 16, 3.0, 4)[1].failed_at.tolist() == [3] * 3
