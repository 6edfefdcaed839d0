"""The guard in stock pipelines: no copy comes out, whatever the inputs and the type of the output."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.adapters.guarded_call import rows_of
from callbacks.adapters.stock import mitigate
from callbacks.mitigations.detour import Detour
from callbacks.mitigations.static_transition import StaticTransition
from infer.index.descriptor_index import DescriptorIndex
from infer.index.guard import Guard
from infer.metrics.similarity import CORRELATION, pixel_descriptor
from tests.callbacks.adapters.stock_runs import run, seeded, with_scheduler
from tests.conftest import CAPTIONS

pytestmark = pytest.mark.usefixtures("one_thread")
RULE, STRONGER = StaticTransition(500), StaticTransition(650, -3.0)
NEAR = 0.9999


def index_of(images: list[Image.Image], folder: Path) -> Path:
    DescriptorIndex(pixel_descriptor(images), CORRELATION, 16).save(folder / "index.safetensors")
    return folder / "index.safetensors"


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_a_copy_is_made_again(stock_pipelines: dict[str, Any], model: str, tmp_path: Path) -> None:
    """With its own prompts; the same each time; the other image stays, and its cost."""
    pipe = with_scheduler(stock_pipelines[model], "ddim")
    plain = mitigate(pipe, RULE)
    first = run(plain, output_type="pil", negative_prompt=["sun", "old map"])
    guard = Guard(index_of(first[1:], tmp_path), NEAR, 3, stronger=[STRONGER])
    twin = mitigate(pipe, RULE, guard=guard)
    images = run(twin, output_type="pil", negative_prompt=["sun", "old map"])
    assert same(images[0], first[0]) and not same(images[1], first[1])
    assert twin.guarded.attempts.tolist() == [1, 2] and not twin.guarded.refused.any()
    assert twin.trace.guidance_scale[1, 0] == -3 and twin.trace.guidance_scale[0, 0] == 0
    once = plain.trace.nfe[1]
    assert twin.trace.nfe.tolist() == [once, once + 2 * 6]
    again = run(twin, output_type="np", negative_prompt=["sun", "old map"])
    assert np.abs(again - np.stack(images) / 255).max() < 0.01


def test_what_stays_a_copy_is_a_placeholder(sd: Any, tmp_path: Path) -> None:
    """A threshold that all exceed; as a tuple, several images of a prompt, one generator for all, or none."""
    guard = Guard(index_of(run(mitigate(sd), output_type="pil"), tmp_path), -1.0, 2)
    twin = mitigate(sd, RULE, guard=guard)
    options = {"num_inference_steps": 4, "height": 16, "width": 16, "num_images_per_prompt": 2}
    for generator in (None, seeded([5])[0], seeded([1, 2])):
        images, flags = twin("sun", generator=generator, return_dict=False, **options)
        assert [np.unique(np.asarray(image)).tolist() for image in images] == [[128]] * 2 and flags is None
        assert twin.guarded.refused.tolist() == [True, True] and twin.guarded.attempts.tolist() == [2, 2]
    tensors = twin("sun", output_type="pt", **options).images
    assert tensors.shape == (2, 3, 16, 16) and (tensors - 128 / 255).abs().max() < 1e-6


def test_further_seeds_come_from_the_generator(sd: Any, tmp_path: Path) -> None:
    """One that goes on from call to call gives new images, one that starts anew the same."""
    index = index_of(run(mitigate(sd), output_type="pil"), tmp_path)
    guard, seen = Guard(index, -1.0, 2), []
    nearest = guard.nearest
    guard.nearest = lambda images: (seen.append(images[0]), nearest(images))[1]
    twin, generator = mitigate(sd, guard=guard), seeded([5])[0]
    for own in (generator, generator, seeded([5])[0]):
        twin("sun", generator=own, num_inference_steps=3, height=16, width=16)
    assert len(seen) == 6 and same(seen[1], seen[5]) and not same(seen[1], seen[3])


def test_inputs_of_an_image() -> None:
    """Texts for all, texts and embeddings of each prompt, and what belongs to no prompt."""
    assert rows_of("prompt", "sun", [1, 2], 3) == ["sun", "sun"]
    assert rows_of("negative_prompt", CAPTIONS[:3], [1, 2, 5], 2) == [CAPTIONS[0], CAPTIONS[1], CAPTIONS[2]]
    embeddings = torch.arange(6.0).view(3, 2)
    assert torch.equal(rows_of("prompt_embeds", embeddings, [0, 5], 2), embeddings[[0, 2]])
    assert rows_of("prompt_embeds", None, [0], 1) is None and rows_of("timesteps", [9, 5], [0], 1) == [9, 5]


def test_what_a_guard_cannot_do(sd: Any, sdxl: Any, tmp_path: Path) -> None:
    index = index_of(run(mitigate(sd), output_type="pil"), tmp_path)
    with pytest.raises(ValueError, match="a guard checks images: output_type is pil, np or pt, not 'latent'"):
        run(mitigate(sd, guard=Guard(index)))
    needs_loop = Guard(index, stronger=[Detour(StaticTransition(), prompt="a dog")])
    with pytest.raises(ValueError, match="Detour is for StableDiffusionPipeline, not"):
        mitigate(sdxl, guard=needs_loop)
