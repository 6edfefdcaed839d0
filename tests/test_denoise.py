"""The denoising loop and the two mitigations, against stock diffusers, hand-written loops and made curves."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from callbacks.dynamic_transition import DynamicTransition
from callbacks.static_transition import StaticTransition
from data.pipeline import load_pipeline
from infer.denoise import Denoised, denoise
from infer.generate import Generate
from infer.rules import DenoisingStep, GuidanceRule, Request
from infer.schedulers import SCHEDULERS, make_scheduler
from tests.conftest import BASE, CAPTIONS, random_pipeline

NEVER = None
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipeline folders by name."""
    epsilon = tmp_path_factory.mktemp("epsilon")
    random_pipeline("epsilon").save_pretrained(epsilon)
    return {"v": tiny_pipeline, "epsilon": epsilon, "bundled": BASE}


def generator_of(folder: Path, **settings) -> Generate:
    """The predict module with its pipeline loaded, without a trainer."""
    module = Generate(str(folder), **settings)
    module.pipe = load_pipeline(str(folder))
    module.pipe.scheduler = make_scheduler(module.pipe.scheduler, module.scheduler, module.timestep_spacing)
    return module


def requests(count: int) -> list[Request]:
    return [Request(f"s{n}", 0, CAPTIONS[n], 1000 + n) for n in range(count)]


@pytest.mark.parametrize(
    "settings",
    [{"scheduler": name} for name in SCHEDULERS]
    + [{"scheduler": name, "timestep_spacing": spacing} for name in ("ddim", "dpm", "euler", "pndm", "unipc")
       for spacing in ("linspace", "trailing")],
    ids=lambda settings: "-".join(settings.values()),
)  # fmt: skip
@pytest.mark.parametrize("model, steps, scale", [("v", 10, 3.0), ("epsilon", 20, 7.5), ("bundled", 6, 3.0)])
def test_without_mitigation_it_is_stock_diffusers(
    models: dict[str, Path], settings: dict[str, str], model: str, steps: int, scale: float
) -> None:
    """Latents and images, of the same seeds."""
    module = generator_of(models[model], num_inference_steps=steps, guidance_scale=scale, **settings)
    made = module.generate(requests(2))
    latents: list[Tensor] = []
    stock = module.pipe(
        CAPTIONS[:2],
        guidance_scale=scale,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(request.seed) for request in requests(2)],
        callback_on_step_end=lambda pipe, index, t, state: latents.append(state["latents"]) or state,
    ).images
    assert made.denoised.latents.isfinite().all()
    assert (made.denoised.latents - latents[-1]).abs().max() <= 1e-5
    assert np.array_equal(np.stack(made.images), np.stack(stock))


# A small world without VAE and text encoder: the random UNet, noise and embeddings.


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


def scheduler_of(kind: type = DDIMScheduler, prediction: str = "v_prediction", **options):
    return kind(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction,
        **({"clip_sample": False, "set_alpha_to_one": False} if kind is DDIMScheduler else {}),
        **{"steps_offset": 1, **options},
    )  # fmt: skip


def inputs(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, unconditional and conditional embeddings."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 4, 8, 8, generator=random)
    unconditional = torch.randn(count, 8, 32, generator=random)
    return noise, unconditional, torch.randn(count, 8, 32, generator=random)


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return random_pipeline().unet.eval()


@torch.no_grad()
def by_hand(
    unet: Callable, scheduler, count: int, steps: int, guide: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    """The final latents of a loop that evaluates both predictions of all rows and mixes them by `guide`."""
    latents, unconditional, conditional = inputs(count)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        u = unet(latents, t, encoder_hidden_states=unconditional, return_dict=False)[0]
        c = unet(latents, t, encoder_hidden_states=conditional, return_dict=False)[0]
        latents = scheduler.step(guide(int(t), u, c), t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize(
    "scale, guide",
    [
        (0.0, lambda t, u, c: u),
        (1.0, lambda t, u, c: c),
        (-2.0, lambda t, u, c: u - 2 * (c - u)),
        (7.5, lambda t, u, c: u + 7.5 * (c - u)),
    ],
)
def test_what_a_guidance_scale_means(unet: torch.nn.Module, scale: float, guide: Callable) -> None:
    """0 unconditional, 1 conditional, negative the opposite way."""
    made = denoise(unet, scheduler_of(), *inputs(3), scale, 10)
    assert torch.allclose(made.latents, by_hand(unet, scheduler_of(), 3, 10, guide), atol=1e-5)


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("before", [0.0, 1.0, -2.0])
def test_static_transition_is_a_switch_of_the_scale(unet: torch.nn.Module, kind: type, before: float) -> None:
    made = denoise(unet, scheduler_of(kind), *inputs(3), 7.5, 12, [StaticTransition(500, before)])

    def guide(t: int, u: Tensor, c: Tensor) -> Tensor:
        return u + (before if t > 500 else 7.5) * (c - u)

    assert torch.allclose(made.latents, by_hand(unet, scheduler_of(kind), 3, 12, guide), atol=1e-4)


def dry_run(scheduler, rule: GuidanceRule, steps: int = 50) -> Denoised:
    """The loop with a network that says nothing."""

    def zeros(x: Tensor, t: Tensor, **options) -> tuple[Tensor]:
        return (torch.zeros_like(x),)

    return denoise(zeros, scheduler, *inputs(1), 7.5, steps, [rule])


@pytest.mark.parametrize(
    "spacing, timestep, first, count",
    [
        ("leading", 500, 495, 26), ("leading", 650, 647, 34), ("leading", 700, 685, 36),
        ("leading", 600, 590, 31),
        ("linspace", 500, 500, 25), ("linspace", 650, 639, 32), ("linspace", 700, 699, 35),
        ("linspace", 600, 599, 30),
    ],
)  # fmt: skip
def test_where_the_papers_transitions_fall(spacing: str, timestep: int, first: int, count: int) -> None:
    """First guided timestep and number of guided steps of 50, on the two grids of the published code."""
    scheduler = scheduler_of(DPMSolverMultistepScheduler, timestep_spacing=spacing)
    made = dry_run(scheduler, StaticTransition(timestep))
    assert made.transition_timestep.tolist() == [first]
    assert (made.guidance_scale == 7.5).sum() == count and (made.guidance_scale == 0).sum() == 50 - count


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("timestep", [21, 500, 978, 978.9])
def test_static_transition_holds_exactly_at_and_below_its_timestep(spacing: str, timestep: int) -> None:
    """On every grid."""
    made = dry_run(scheduler_of(timestep_spacing=spacing), StaticTransition(timestep))
    timesteps = made.timesteps[0].tolist()
    assert made.guidance_scale[0].tolist() == [7.5 if t <= timestep else 0.0 for t in timesteps]
    assert made.transition_timestep.item() == max(t for t in timesteps if t <= timestep)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_transitions_the_later_one_gives_the_full_scale(order: int) -> None:
    rules = [StaticTransition(700, 1.0), StaticTransition(500, -2.0)][::order]
    made = denoise(lambda x, t, **options: (torch.zeros_like(x),), scheduler_of(), *inputs(1), 7.5, 10, rules)
    assert [t for t, s in zip(made.timesteps[0], made.guidance_scale[0], strict=True) if s == 7.5] == [
        401,
        301,
        201,
        101,
        1,
    ]
    assert made.transition_timestep.tolist() == [401]


def test_a_negative_transition_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative, as -1 is"):
        StaticTransition(-1)


@pytest.mark.parametrize(
    "rule, message",
    [
        (StaticTransition(981), "never hold guidance back: the 50 timesteps.* from 981 to 1 .of 0..999"),
        (StaticTransition(0.5), "never give guidance: the 50 timesteps of this schedule run from 981 to 1 "),
        (
            DynamicTransition(fallback_timestep=981),
            "fallback at 981 is outside .* 50 timesteps run from 981 to 1",
        ),
        (DynamicTransition(steps_after=50), "above 50 and at most 1000, not 50"),
        (StaticTransition(500, 7.5), "guidance_before equals guidance_scale"),
        (DynamicTransition(7.5), "guidance_before equals guidance_scale"),
    ],
)
def test_what_cannot_take_effect_is_refused(rule: GuidanceRule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dry_run(scheduler_of(), rule)


def test_dynamic_transition_needs_three_steps() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        dry_run(scheduler_of(), DynamicTransition(), 2)


def test_schedulers_that_the_loop_cannot_serve_are_refused() -> None:
    """By name, with what to use instead."""
    with pytest.raises(ValueError, match="'sample'.*only epsilon"):
        dry_run(scheduler_of(prediction="sample"), GuidanceRule())
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler is not supported.*ddim, .*unipc"):
        dry_run(FlowMatchEulerDiscreteScheduler(), GuidanceRule())
    own = scheduler_of()
    with pytest.raises(ValueError, match="no scheduler 'best': there are own, ddim"):
        make_scheduler(own, "best")
    with pytest.raises(ValueError, match="LCMScheduler does not heed timestep_spacing"):
        make_scheduler(own, "lcm", "trailing")


# Dynamic transition on made curves


def firing(curves: list[list[float]], rule: DynamicTransition, alphas: list[float] | None = None) -> list:
    """The step at which each curve fires (None: never), after a look at the scale of every step."""
    steps, count = len(curves[0]), len(curves)
    timesteps = [900 - 10 * index for index in range(steps)]
    rule.begin(count, torch.device("cpu"))
    applied = []
    for index in range(steps):
        step = DenoisingStep(
            index=index, timestep=timesteps[index], timesteps=timesteps, latents=torch.zeros(count, 1, 1, 2),
            alpha=alphas[index] if alphas else 1.0, sigma=0.0,
            prediction_type="v_prediction" if alphas else "epsilon", guidance_scale=7.5,
        )  # fmt: skip
        step.unconditional = torch.ones(count, 1, 1, 2)
        step.conditional = 1 + torch.tensor([curve[index] for curve in curves]).view(-1, 1, 1, 1).expand(
            count, 1, 1, 2
        )
        assert rule.watches(step)
        rule.observe(step)
        applied.append(rule.guidance_scale(step, torch.full((count,), 7.5)))
    found = []
    for row, timestep in zip(torch.stack(applied, 1).tolist(), rule.transition_timestep(), strict=True):
        first = row.index(7.5) if 7.5 in row else steps
        assert row == [rule.guidance_before] * first + [7.5] * (steps - first), "once fired, always"
        assert math.isnan(timestep) if first == steps else timestep == timesteps[first]
        found.append(first if first < steps else NEVER)
    return found


CURVES = {
    "a V: one step after its minimum": ([5, 4, 3, 4, 5, 6], 3),
    "several minima: the first": ([5, 3, 4, 1, 2, 3], 2),
    "the earliest there can be": ([2, 1, 2, 3, 4, 5], 2),
    "rising before it falls": ([1, 3, 2, 4, 4, 4], 3),
    "a minimum that the last step shows": ([6, 5, 4, 3, 2, 3], 5),
    "a minimum at the last step": ([6, 5, 4, 3, 2, 1], NEVER),
    "rising": ([1, 2, 3, 4, 5, 6], NEVER),
    "flat": ([2, 2, 2, 2, 2, 2], NEVER),
    "a plateau at the bottom": ([3, 2, 1, 1, 2, 3], NEVER),
    "a maximum": ([1, 2, 3, 2, 1, 0.5], NEVER),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_first_local_minimum_of_a_curve(name: str) -> None:
    curve, expected = CURVES[name]
    assert firing([curve], DynamicTransition()) == [expected]


def test_each_sample_of_a_batch_has_its_own_transition() -> None:
    rule = DynamicTransition(guidance_before=-7.5)
    curves, expected = zip(*CURVES.values(), strict=True)
    assert firing(list(curves), rule) == list(expected)
    assert firing([[1, 2, 3, 4]], rule) == [NEVER]  # and nothing of a batch stays for the next


def test_epsilon_and_v_space_can_disagree() -> None:
    """The outputs' difference has a minimum; times an alpha that grows it rises all along."""
    curves, alphas = [[4.0, 3.0, 2.5, 3.0]], [0.1, 0.5, 0.9, 1.0]
    assert firing(curves, DynamicTransition(watch="model_output"), alphas) == [3]
    assert firing(curves, DynamicTransition(watch="epsilon"), alphas) == [NEVER]


def test_dynamic_transition_in_the_loop(unet: torch.nn.Module) -> None:
    """Its scales are those its own trace asks for, and its latents those of a hand-written loop at them."""
    made = denoise(unet, scheduler_of(), *inputs(6), 7.5, 20, [DynamicTransition(-2.0)])
    fired = firing(made.difference_rms.tolist(), DynamicTransition(-2.0))
    assert any(step is not NEVER for step in fired) and len(set(fired)) > 1
    expected = [[-2.0] * (20 if f is NEVER else f) + [7.5] * (0 if f is NEVER else 20 - f) for f in fired]
    assert made.guidance_scale.tolist() == expected
    scale = dict(zip(made.timesteps[0].tolist(), made.guidance_scale.T.view(20, 6, 1, 1, 1), strict=True))
    reference = by_hand(unet, scheduler_of(), 6, 20, lambda t, u, c: u + scale[t] * (c - u))
    assert torch.allclose(made.latents, reference, atol=1e-3)


# Cost, and what is not computed


class PerSample(GuidanceRule):
    """Another scale for each row, another way round in the second half."""

    SCALES = torch.tensor([0.0, 1.0, 7.5, -2.0])

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        return self.SCALES if step.index < 5 else self.SCALES.flip(0)


@pytest.mark.parametrize(
    "rules, expected",
    [
        ([], [20] * 4),
        ([StaticTransition(500, 0.0)], [15] * 4),
        ([StaticTransition(500, 1.0)], [15] * 4),
        ([StaticTransition(500, -2.0)], [20] * 4),
        ([DynamicTransition()], [20] * 4),
        ([PerSample()], [15] * 4),
    ],
)
def test_unet_evaluations_are_counted_and_no_more_are_made(
    unet: torch.nn.Module, rules: list[GuidanceRule], expected: list[int]
) -> None:
    """A guided row costs two a step, a row at scale 0 or 1 that nobody watches costs one."""
    counting = Counting(unet)
    made = denoise(counting, scheduler_of(), *inputs(4), 7.5, 10, rules)
    assert made.nfe.tolist() == expected
    assert len(counting.rows) == 10 and sum(counting.rows) == sum(expected)


def test_predictions_left_out_change_nothing(unet: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one batch that need different predictions get what they get when everything is evaluated."""
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, math.nan))  # what memory may hold
    made = denoise(unet, scheduler_of(), *inputs(4), 7.5, 10, [PerSample()])
    early = made.timesteps[0, :5].tolist()

    def guide(t: int, u: Tensor, c: Tensor) -> Tensor:
        scales = PerSample.SCALES if t in early else PerSample.SCALES.flip(0)
        return u + scales.view(-1, 1, 1, 1) * (c - u)

    assert torch.allclose(made.latents, by_hand(unet, scheduler_of(), 4, 10, guide), atol=1e-4)


def test_traces_are_in_epsilon_space_and_empty_where_nothing_was_computed(unet: torch.nn.Module) -> None:
    """eps = alpha v + sigma x: the difference is alpha (v_c - v_u), at every step."""
    counting, scheduler = Counting(unet), scheduler_of()
    made = denoise(counting, scheduler, *inputs(3), 7.5, 10, [StaticTransition(500)])
    alphas = scheduler.alphas_cumprod[made.timesteps[0].long()].sqrt()
    early = [index for index, t in enumerate(made.timesteps[0]) if t > 500]
    assert early == [0, 1, 2, 3, 4]
    assert made.difference_rms[:, early].isnan().all() and made.conditional_rms[:, early].isnan().all()
    assert not made.unconditional_rms.isnan().any()
    for index in range(5, 10):
        u, c = counting.outputs[index].chunk(2)
        expected = alphas[index] * ((c - u) ** 2).mean((1, 2, 3)).sqrt()
        assert torch.allclose(made.difference_rms[:, index], expected, rtol=1e-4)
    noise = inputs(3)[0]
    first = alphas[0] * counting.outputs[0] + (1 - alphas[0] ** 2).sqrt() * noise
    assert torch.allclose(made.unconditional_rms[:, 0], (first**2).mean((1, 2, 3)).sqrt(), rtol=1e-4)


def test_an_image_does_not_know_its_batch(tiny_pipeline: Path) -> None:
    """Alone, in a batch, in another order: the same latents, images and transition."""
    module = generator_of(tiny_pipeline, num_inference_steps=20)
    asked = requests(5)
    order = [3, 0, 4, 1, 2]

    def watching() -> DynamicTransition:
        return DynamicTransition(-2.0, watch="model_output")  # of this random model it has minima

    together = module.generate(asked, [watching()])
    turned = module.generate([asked[n] for n in order], [watching()])
    alone = [module.generate([request], [watching()]) for request in asked]
    transitions = together.denoised.transition_timestep
    assert transitions.isfinite().any() and transitions.nan_to_num().unique().numel() > 1
    for number in range(5):
        for other, place in ((alone[number], 0), (turned, order.index(number))):
            assert torch.allclose(other.denoised.latents[place], together.denoised.latents[number], atol=1e-4)
            assert torch.equal(
                other.denoised.transition_timestep[place].nan_to_num(), transitions[number].nan_to_num()
            )
            difference = np.array(other.images[place], int) - np.array(together.images[number], int)
            assert np.abs(difference).max() <= 1
