"""Schedulers made from a pipeline's own, of another kind."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from infer.denoising.loop import prepare
from infer.denoising.sampling import resolution_of
from infer.denoising.schedulers import make_scheduler
from tests.infer.denoising.loops import dry_run, scheduler_of


@pytest.mark.parametrize(
    "own", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, PNDMScheduler]
)
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_latents_are_not_clipped_where_the_own_scheduler_knows_no_clipping(own: type, name: str) -> None:
    """Clipping to -1..1 is for pixels: a clean estimate of 3 stays 3."""
    made = make_scheduler(scheduler_of(own), name)
    prepare(made, 7.5, 10)
    alpha = made.alphas_cumprod[901] ** 0.5
    clean = torch.full((1, 1, 2, 2), 3.0)
    step = made.step(torch.zeros_like(clean), 901, alpha * clean)
    assert torch.allclose(step.pred_original_sample, clean, rtol=1e-4)


def test_a_config_that_asks_for_clipping_is_heeded() -> None:
    own = DDIMScheduler.from_config(scheduler_of().config, clip_sample=True)
    assert make_scheduler(own, "ddpm").config.clip_sample


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm", "dpm", "unipc", "euler"])
def test_a_grid_that_leaves_the_schedule_is_refused(name: str) -> None:
    """With an offset of 1 a thousand leading timesteps end at 1000, or stand still; 999 or 500 are fine."""
    made = make_scheduler(scheduler_of(), name)
    with pytest.raises(ValueError, match="has no grid of 100[01] steps here, .*: take another number"):
        prepare(made, 7.5, 1000)
    assert prepare(made, 7.5, 500)[0] < 1000


@pytest.mark.parametrize(
    "size, side", [(8, 16), ([8, 8], 16), ((8, 8), 16), ([8, 4], None), (None, None), (8.5, None)]
)
def test_the_side_of_the_images_is_the_unets_own(size, side: int | None) -> None:
    pipe = SimpleNamespace(vae_scale_factor=2, unet=SimpleNamespace(config=SimpleNamespace(sample_size=size)))
    assert resolution_of(pipe, 6) == 6
    for wrong in (7, 0, -2):
        with pytest.raises(ValueError, match=f"resolution must be a multiple of 2 pixels, not {wrong}"):
            resolution_of(pipe, wrong)
    if side:
        assert resolution_of(pipe, None) == side
    else:
        with pytest.raises(ValueError, match="no side of a square: give resolution"):
            resolution_of(pipe, None)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_pndm_takes_no_warm_up_unless_the_config_asks(steps: int) -> None:
    """As in Stable Diffusion's own config: one evaluation a step, and one more at the second."""
    made = make_scheduler(scheduler_of(EulerDiscreteScheduler), "pndm")
    assert len(prepare(made, 7.5, steps)) == steps + (steps > 1)
    assert dry_run(made, [], steps).latents.isfinite().all()
    asked = PNDMScheduler.from_config(made.config, skip_prk_steps=False)
    assert len(prepare(make_scheduler(asked, "pndm"), 7.5, 10)) > 11
