"""Schedulers made from a pipeline's own, of another kind."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from infer.denoise import prepare
from infer.schedulers import make_scheduler
from tests.loops import dry_run, scheduler_of


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


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_pndm_takes_no_warm_up_unless_the_config_asks(steps: int) -> None:
    """As in Stable Diffusion's own config: one evaluation a step, and one more at the second."""
    made = make_scheduler(scheduler_of(EulerDiscreteScheduler), "pndm")
    assert len(prepare(made, 7.5, steps)) == steps + (steps > 1)
    assert dry_run(made, [], steps).latents.isfinite().all()
    asked = PNDMScheduler.from_config(made.config, skip_prk_steps=False)
    assert len(prepare(make_scheduler(asked, "pndm"), 7.5, 10)) > 11
