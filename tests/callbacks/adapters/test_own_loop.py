"""Every mitigation in a stock pipeline: its inputs and outputs, and the images of our loop."""

from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.adapters.own_loop import image_seeds
from callbacks.adapters.stock import mitigate
from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.first_guess import FirstGuess
from callbacks.mitigations.presets import load_mitigations
from callbacks.mitigations.prompts.pads import Pads
from data.prompts import text_id
from infer.denoising.hooks import DenoisingStep
from infer.denoising.noise import initial_noise
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from infer.index.descriptor_index import DescriptorIndex
from infer.index.guard import Guard
from infer.metrics.similarity import CORRELATION, pixel_descriptor
from tests.callbacks.adapters.stock_runs import CPU, assert_same_trace, close, run, seeded, with_scheduler
from tests.conftest import CAPTIONS

pytestmark = pytest.mark.usefixtures("one_thread")
PRESETS = [
    "og_two_pass", "somepalli_word", "somepalli_noise", "wen", "pads", "cads", "ren", "guard", "sail",
    "divin", "first_guess", "first_guess+somepalli_word", "stp+pads",
]  # fmt: skip


class Idle(Mitigation):
    """Needs our loop, and changes nothing."""

    def after_step(self, step: DenoisingStep, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return after


@pytest.mark.parametrize("preset", PRESETS)
def test_images_are_those_of_our_loop(sd: Any, preset: str) -> None:
    """Two of each prompt, with negative prompts; what rules draw follows from the images' seeds."""
    generators, negatives = seeded([5, 6, 7, 8]), ["old map", "sun"]
    seeds = image_seeds(generators, 4)
    noise, _ = initial_noise(seeds, (4, 8, 8), torch.float32)
    twin = mitigate(sd, *load_mitigations(preset, {}))
    images = twin(
        CAPTIONS[:2], generator=generators, latents=noise, num_inference_steps=8, height=16, width=16,
        negative_prompt=negatives, num_images_per_prompt=2,
    ).images  # fmt: skip
    requested = [
        Request(text_id(CAPTIONS[n // 2]), n, CAPTIONS[n // 2], seeds[n], negatives[n // 2]) for n in range(4)
    ]
    expected, denoised = make_images(sd, CPU, requested, 16, 7.5, 8, rules=load_mitigations(preset, {}))
    assert [image.tobytes() for image in images] == [image.tobytes() for image in expected]
    assert_same_trace(twin.trace, denoised)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm", "euler", "pndm", "heun"])
def test_a_rule_that_changes_nothing_leaves_the_stock_images(sd: Any, scheduler: str) -> None:
    """Also of one text, of no square, and of embeddings; the generators are left as the stock call does."""
    pipe = with_scheduler(sd, scheduler)
    twin, text = mitigate(pipe, Idle()), pipe.encode_prompt(CAPTIONS[:2], "cpu", 1, True)
    embeddings = {"prompt_embeds": text[0], "negative_prompt_embeds": text[1]}
    for prompts, options in (
        (tuple(CAPTIONS[:2]), {"width": 24}),
        (CAPTIONS[0], {"num_images_per_prompt": 2, "negative_prompt": "sun", "guidance_scale": 2.0}),
        (None, embeddings),
    ):
        assert close(run(twin, prompts, **options), run(pipe, prompts, **options))
    states = []
    for each in (pipe, twin):
        [generator] = seeded([3])
        each(CAPTIONS[:2], generator=generator, num_inference_steps=2, height=16, width=16)
        states.append(generator.get_state())
    assert torch.equal(*states) and twin.unet is pipe.unet and twin.scheduler is pipe.scheduler


def test_the_result_follows_from_the_generators(sd: Any) -> None:
    """One for all images or each its own, of which the next call with the same one makes other images."""
    twin = mitigate(sd, FirstGuess([650.0], threshold=-1.0))
    options = {"num_inference_steps": 6, "height": 16, "width": 16, "output_type": "latent"}
    [one, same] = seeded([3, 3])
    first, second = (twin(CAPTIONS[:2], generator=one, **options).images for _ in range(2))
    assert torch.equal(first, twin(CAPTIONS[:2], generator=same, **options).images)
    assert not close(first, second)
    torch.manual_seed(0)
    free = twin(CAPTIONS[0], **options).images
    torch.manual_seed(0)
    assert torch.equal(free, twin(CAPTIONS[0], **options).images)


def test_a_stochastic_scheduler_draws_for_each_image(sd: Any) -> None:
    twin = mitigate(with_scheduler(sd, "euler_ancestral"), Idle())
    together = run(twin)
    assert close(together[:1], run(twin, (CAPTIONS[0],), [0])) and close(together, run(twin))


def test_the_callback_sees_the_last_step(sd: Any) -> None:
    seen = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        seen.append(tensors["latents"])
        return {}

    output = run(mitigate(sd, Idle()), callback_on_step_end=keep)
    assert len(seen) == 1 and torch.equal(seen[0], output)


@pytest.mark.parametrize("rule, options, message", [
    (Idle(), {"eta": 0.5}, "eta cannot be combined"),
    (Idle(), {"cross_attention_kwargs": {"scale": 0.5}}, "cross_attention_kwargs cannot be combined"),
    (Idle(), {"timesteps": [900, 500, 100]}, "custom timestep schedules"),
    (Pads(), {"prompt": None, "prompt_embeds": torch.zeros(1, 8, 32)}, "Pads reads the prompt: give prompt"),
    (Idle(), {"prompt": None}, "Provide either `prompt` or `prompt_embeds`"),
    (FirstGuess(), {"num_inference_steps": 1}, "outside of the schedule"),
])  # fmt: skip
def test_inputs_that_our_loop_does_not_take_are_errors(
    sd: Any, rule: Mitigation, options: dict[str, Any], message: str
) -> None:
    options = {"prompt": "sun", "num_inference_steps": 6, "height": 16, "width": 16} | options
    with pytest.raises(ValueError, match=message):
        mitigate(sd, rule)(**options)


def test_a_guard_makes_images_again_under_such_a_rule(sd: Any, tmp_path: Path) -> None:
    images = run(mitigate(sd), output_type="pil")
    DescriptorIndex(pixel_descriptor(images[:1]), CORRELATION, 16).save(tmp_path / "index.safetensors")
    stronger = load_mitigations("first_guess+og_stp", {})
    guard = Guard(tmp_path / "index.safetensors", threshold=0.9999, attempts=2, stronger=stronger)
    twin = mitigate(sd, guard=guard)
    guarded = run(twin, output_type="pil")
    assert guarded[0].tobytes() != images[0].tobytes() and guarded[1].tobytes() == images[1].tobytes()
    assert twin.guarded.attempts.tolist() == [2, 1] and not twin.guarded.refused.any()
    assert twin.trace.nfe.tolist() != [12, 12]
