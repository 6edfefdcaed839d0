"""The denoising loop: stock diffusers without mitigation, what scales and switches mean, cost and traces."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.hooks import DenoisingStep, GuidanceRule
from infer.denoising.loop import denoise
from infer.denoising.schedulers import SCHEDULERS, make_scheduler
from infer.options import ModelOptions
from infer.predict.module import Generate
from tests.conftest import BASE, CAPTIONS, random_pipeline
from tests.infer.denoising.loops import by_hand, dry_run, inputs, requests, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
v_scheduler = partial(scheduler_of, prediction="v_prediction")  # as the random UNet's


@pytest.fixture(scope="module")
def models(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipeline folders by name."""
    epsilon = tmp_path_factory.mktemp("epsilon")
    random_pipeline("epsilon").save_pretrained(epsilon)
    return {"v": tiny_pipeline, "epsilon": epsilon, "bundled": BASE}


def generator_of(folder: Path, **settings) -> Generate:
    """The predict module with its pipeline loaded, without a trainer."""
    module = Generate(ModelOptions(pipeline=str(folder), **settings))
    module.load()
    return module


@pytest.mark.parametrize(
    "settings",
    [{"scheduler": name} for name in SCHEDULERS]
    + [{"scheduler": name, "timestep_spacing": spacing} for name in ("ddim", "dpm", "euler", "pndm", "unipc")
       for spacing in ("linspace", "trailing")],
    ids=lambda settings: "-".join(settings.values()),
)  # fmt: skip
@pytest.mark.parametrize("model, steps, scale", [("v", 10, 3.0), ("epsilon", 12, 7.5)])
def test_without_mitigation_it_is_stock_diffusers(
    models: dict[str, Path], settings: dict[str, str], model: str, steps: int, scale: float
) -> None:
    assert_is_stock(models, settings, model, steps, scale)


def test_the_bundled_model_is_sampled_as_by_stock_diffusers(models: dict[str, Path]) -> None:
    assert_is_stock(models, {}, "bundled", 6, 3.0)


def assert_is_stock(
    models: dict[str, Path], settings: dict[str, str], model: str, steps: int, scale: float
) -> None:
    """Latents and images, of the same seeds."""
    module = generator_of(models[model], num_inference_steps=steps, guidance_scale=scale, **settings)
    result = module.generate(requests(2))
    latents: list[Tensor] = []
    stock = module.pipe(
        CAPTIONS[:2], guidance_scale=scale, num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(request.seed) for request in requests(2)],
        callback_on_step_end=lambda pipe, index, t, state: latents.append(state["latents"]) or state,
    ).images  # fmt: skip
    assert result.denoised.latents.isfinite().all()
    assert (result.denoised.latents - latents[-1]).abs().max() <= 1e-5
    assert np.array_equal(np.stack(result.images), np.stack(stock))


@pytest.mark.parametrize("scale, guide", [
    (0.0, lambda index, t, u, c: u), (1.0, lambda index, t, u, c: c),
    (-2.0, lambda index, t, u, c: u - 2 * (c - u)), (7.5, lambda index, t, u, c: u + 7.5 * (c - u)),
])  # fmt: skip
def test_what_a_guidance_scale_means(unet: torch.nn.Module, scale: float, guide: Callable) -> None:
    """0 unconditional, 1 conditional, negative the opposite way."""
    result = denoise(unet, v_scheduler(), *inputs(3), scale, 10)
    assert torch.allclose(result.latents, by_hand(unet, v_scheduler(), inputs(3), 10, guide)[-1], atol=1e-5)


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("before", [0.0, 1.0, -2.0])
def test_static_transition_is_a_switch_of_the_scale(unet: torch.nn.Module, kind: type, before: float) -> None:
    result = denoise(unet, v_scheduler(kind), *inputs(3), 7.5, 12, [StaticTransition(500, before)])

    def guide(index: int, t: float, u: Tensor, c: Tensor) -> Tensor:
        return u + (before if t > 500 else 7.5) * (c - u)

    assert torch.allclose(
        result.latents, by_hand(unet, v_scheduler(kind), inputs(3), 12, guide)[-1], atol=1e-4
    )


@pytest.mark.parametrize("spacing, timestep, first, count", [
    ("leading", 500, 495, 26), ("leading", 650, 647, 34), ("leading", 700, 685, 36),
    ("leading", 600, 590, 31),
    ("linspace", 500, 500, 25), ("linspace", 650, 639, 32), ("linspace", 700, 699, 35),
    ("linspace", 600, 599, 30),
])  # fmt: skip
def test_where_the_papers_transitions_fall(spacing: str, timestep: int, first: int, count: int) -> None:
    """First guided timestep and number of guided steps of 50, on the two grids of the published code."""
    scheduler = v_scheduler(DPMSolverMultistepScheduler, timestep_spacing=spacing)
    result = dry_run(scheduler, [StaticTransition(timestep)])
    assert result.transition_timestep.tolist() == [first]
    assert (result.guidance_scale == 7.5).sum() == count and (result.guidance_scale == 0).sum() == 50 - count


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("timestep", [21, 500, 978, 978.9])
def test_static_transition_holds_exactly_at_and_below_its_timestep(spacing: str, timestep: int) -> None:
    """On every grid."""
    result = dry_run(v_scheduler(timestep_spacing=spacing), [StaticTransition(timestep)])
    timesteps = result.timesteps[0].tolist()
    assert result.guidance_scale[0].tolist() == [7.5 if t <= timestep else 0.0 for t in timesteps]
    assert result.transition_timestep.item() == max(t for t in timesteps if t <= timestep)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_transitions_the_later_one_gives_the_full_scale(order: int) -> None:
    rules = [StaticTransition(700, 1.0), StaticTransition(500, -2.0)][::order]
    result = dry_run(v_scheduler(), rules, 10)
    guided = [t for t, s in zip(result.timesteps[0], result.guidance_scale[0], strict=True) if s == 7.5]
    assert guided == [401, 301, 201, 101, 1]
    assert result.transition_timestep.tolist() == [401]


def test_schedulers_that_the_loop_cannot_serve_are_refused() -> None:
    """By name, with what to use instead."""
    with pytest.raises(ValueError, match="'sample'.*only epsilon"):
        dry_run(v_scheduler(prediction="sample"), [GuidanceRule()])
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler is not supported.*ddim, .*unipc"):
        dry_run(FlowMatchEulerDiscreteScheduler(), [GuidanceRule()])
    own = v_scheduler()
    with pytest.raises(ValueError, match="no scheduler 'best': there are own, ddim"):
        make_scheduler(own, "best")
    with pytest.raises(ValueError, match="LCMScheduler ignores timestep_spacing"):
        make_scheduler(own, "lcm", "trailing")


class Counting(torch.nn.Module):
    """A UNet that counts the rows of each call and keeps its outputs."""

    def __init__(self, unet: torch.nn.Module):
        super().__init__()
        self.unet, self.rows, self.outputs = unet, [], []

    def forward(self, x: Tensor, t: Tensor, **options) -> tuple[Tensor]:
        output = self.unet(x, t, **options)
        self.rows.append(len(x))
        self.outputs.append(output[0])
        return output


class PerSample(GuidanceRule):
    """Another scale for each row, another way round in the second half."""

    SCALES = torch.tensor([0.0, 1.0, 7.5, -2.0])

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        return self.SCALES if step.index < 5 else self.SCALES.flip(0)


@pytest.mark.parametrize("rules, expected", [
    ([], [20] * 4), ([StaticTransition(500, 0.0)], [15] * 4), ([StaticTransition(500, 1.0)], [15] * 4),
    ([StaticTransition(500, -2.0)], [20] * 4), ([DynamicTransition()], [20] * 4),
    ([PerSample()], [15] * 4),
])  # fmt: skip
def test_unet_evaluations_are_counted_and_no_more_are_run(
    unet: torch.nn.Module, rules: list[GuidanceRule], expected: list[int]
) -> None:
    """A guided row costs two a step, a row at scale 0 or 1 that nobody watches costs one."""
    counting = Counting(unet)
    result = denoise(counting, v_scheduler(), *inputs(4), 7.5, 10, rules)
    assert result.nfe.tolist() == expected
    assert len(counting.rows) == 10 and sum(counting.rows) == sum(expected)


def test_predictions_left_out_change_nothing(unet: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one batch that need different predictions get what they get when everything is evaluated."""
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, math.nan))  # what memory may hold
    result = denoise(unet, v_scheduler(), *inputs(4), 7.5, 10, [PerSample()])
    early = result.timesteps[0, :5].tolist()

    def guide(index: int, t: float, u: Tensor, c: Tensor) -> Tensor:
        scales = PerSample.SCALES if t in early else PerSample.SCALES.flip(0)
        return u + scales.view(-1, 1, 1, 1) * (c - u)

    assert torch.allclose(result.latents, by_hand(unet, v_scheduler(), inputs(4), 10, guide)[-1], atol=1e-4)


def test_traces_are_in_epsilon_space_and_empty_where_nothing_was_computed(unet: torch.nn.Module) -> None:
    """eps = alpha v + sigma x: the difference is alpha (v_c - v_u), at every step."""
    counting, scheduler = Counting(unet), v_scheduler()
    result = denoise(counting, scheduler, *inputs(3), 7.5, 10, [StaticTransition(500)])
    alphas = scheduler.alphas_cumprod[result.timesteps[0].long()].sqrt()
    early = [index for index, t in enumerate(result.timesteps[0]) if t > 500]
    assert early == [0, 1, 2, 3, 4]
    assert result.difference_rms[:, early].isnan().all() and result.conditional_rms[:, early].isnan().all()
    assert not result.unconditional_rms.isnan().any()
    for index in range(5, 10):
        u, c = counting.outputs[index].chunk(2)
        expected = alphas[index] * ((c - u) ** 2).mean((1, 2, 3)).sqrt()
        assert torch.allclose(result.difference_rms[:, index], expected, rtol=1e-4)
    noise = inputs(3)[0]
    first = alphas[0] * counting.outputs[0] + (1 - alphas[0] ** 2).sqrt() * noise
    assert torch.allclose(result.unconditional_rms[:, 0], (first**2).mean((1, 2, 3)).sqrt(), rtol=1e-4)


def test_an_image_does_not_know_its_batch(tiny_pipeline: Path) -> None:
    """Alone, in a batch, in another order: the same latents, images and transition."""
    module = generator_of(tiny_pipeline, num_inference_steps=20)
    requested = requests(5)
    order = [3, 0, 4, 1, 2]

    def watching() -> DynamicTransition:
        return DynamicTransition(-2.0, watch="model_output")  # of this random model it has minima

    together = module.generate(requested, [watching()])
    turned = module.generate([requested[n] for n in order], [watching()])
    alone = [module.generate([request], [watching()]) for request in requested]
    transitions = together.denoised.transition_timestep
    assert transitions.isfinite().any() and transitions.nan_to_num().unique().numel() > 1
    for number in range(5):
        for other, position in ((alone[number], 0), (turned, order.index(number))):
            assert torch.allclose(
                other.denoised.latents[position], together.denoised.latents[number], atol=1e-4
            )
            assert torch.equal(
                other.denoised.transition_timestep[position].nan_to_num(), transitions[number].nan_to_num()
            )
            difference = np.array(other.images[position], int) - np.array(together.images[number], int)
            assert np.abs(difference).max() <= 1


def test_half_precision_is_stock_diffusers_too(tiny_pipeline: Path) -> None:
    """At a scale that bfloat16 would round."""
    module = generator_of(tiny_pipeline, num_inference_steps=6, guidance_scale=7.3)
    module.pipe.to(torch.bfloat16)
    result = module.generate(requests(2))
    stock = module.pipe(
        CAPTIONS[:2], guidance_scale=7.3, num_inference_steps=6, output_type="latent",
        generator=[torch.Generator().manual_seed(request.seed) for request in requests(2)],
    ).images  # fmt: skip
    assert torch.equal(result.denoised.latents, stock)
