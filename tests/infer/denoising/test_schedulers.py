"""Schedulers built from a pipeline's own, of another kind."""

from types import SimpleNamespace
from typing import Any

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
from infer.denoising.schedulers import (
    SCHEDULERS,
    check_sampling,
    first_informative_step,
    make_scheduler,
    noise_levels,
    warn_of_grid,
)
from tests.infer.denoising.loops import dry_run, scheduler_of


@pytest.mark.parametrize(
    "own", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, PNDMScheduler]
)
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_latents_are_not_clipped_where_the_own_scheduler_knows_no_clipping(own: type, name: str) -> None:
    """Clipping to -1..1 is for pixels: a clean estimate of 3 stays 3."""
    built = make_scheduler(scheduler_of(own), name)
    prepare(built, 7.5, 10)
    alpha = built.alphas_cumprod[901] ** 0.5
    clean = torch.full((1, 1, 2, 2), 3.0)
    step = built.step(torch.zeros_like(clean), 901, alpha * clean)
    assert torch.allclose(step.pred_original_sample, clean, rtol=1e-4)


def test_a_config_with_clipping_is_kept() -> None:
    own = DDIMScheduler.from_config(scheduler_of().config, clip_sample=True)
    assert make_scheduler(own, "ddpm").config.clip_sample


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm", "dpm", "unipc", "euler"])
def test_a_grid_that_leaves_the_schedule_is_refused(name: str) -> None:
    """With an offset of 1 a thousand leading timesteps end at 1000, or stand still; 999 or 500 are fine."""
    built = make_scheduler(scheduler_of(), name)
    with pytest.raises(ValueError, match="has no grid of 100[01] steps here, .*: take another number"):
        prepare(built, 7.5, 1000)
    assert prepare(built, 7.5, 500)[0] < 1000


@pytest.mark.parametrize(
    "size, pixels", [(8, 16), ([8, 8], 16), ((8, 8), 16), ([8, 4], None), (None, None), (8.5, None)]
)
def test_the_resolution_is_the_unets_own(size, pixels: int | None) -> None:
    pipe = SimpleNamespace(vae_scale_factor=2, unet=SimpleNamespace(config=SimpleNamespace(sample_size=size)))
    assert resolution_of(pipe, 6) == 6
    for wrong in (7, 0, -2):
        with pytest.raises(ValueError, match=f"resolution must be a multiple of 2 pixels, not {wrong}"):
            resolution_of(pipe, wrong)
    if pixels:
        assert resolution_of(pipe, None) == pixels
    else:
        with pytest.raises(ValueError, match="not a square: give resolution"):
            resolution_of(pipe, None)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_pndm_takes_no_warm_up_unless_the_config_asks(steps: int) -> None:
    """As in Stable Diffusion's own config: one evaluation a step, and one more at the second."""
    built = make_scheduler(scheduler_of(EulerDiscreteScheduler), "pndm")
    assert len(prepare(built, 7.5, steps)) == steps + (steps > 1)
    assert dry_run(built, [], steps).latents.isfinite().all()
    requested = PNDMScheduler.from_config(built.config, skip_prk_steps=False)
    assert len(prepare(make_scheduler(requested, "pndm"), 7.5, 10)) > 11


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_zero_terminal_snr_is_kept_or_refused(name: str) -> None:
    """Not dropped: a model that was trained with it would start from other noise."""
    own = scheduler_of(prediction="v_prediction", **ZERO_SNR)
    if name in ("pndm", "heun", "deis", "dpm_single"):
        with pytest.raises(ValueError, match="ignores rescale_betas_zero_snr.*: choose one of ddim, ddpm"):
            make_scheduler(own, name)
        return
    scheduler = make_scheduler(own, name)
    assert prepare(scheduler, 7.5, 10)[0] == 999
    levels = noise_levels(scheduler)
    assert levels[0][0] < 1e-3 < levels[1][0]
    assert first_informative_step(levels) == (levels[0][0] == 0)
    assert dry_run(scheduler, [], 10).latents.isfinite().all()


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "dpm", "unipc"])
def test_noise_cannot_be_predicted_at_zero_signal(name: str) -> None:
    """Fine with leading timesteps, which begin later."""
    scheduler = make_scheduler(scheduler_of(**ZERO_SNR), name)
    with pytest.raises(ValueError, match="cannot start at zero signal: set rescale_betas_zero_snr to false"):
        check_sampling(scheduler, 10)
    assert check_sampling(make_scheduler(scheduler_of(**ZERO_SNR), name, "leading"), 10)[0] == 901


@pytest.mark.parametrize(
    "kind, sigmas",
    [(DPMSolverMultistepScheduler, "use_karras_sigmas"), (DPMSolverMultistepScheduler, "use_lu_lambdas"),
     (UniPCMultistepScheduler, "use_karras_sigmas")],
)  # fmt: skip
def test_timesteps_that_repeat_are_counted_from_the_first(kind: type, sigmas: str) -> None:
    """Karras' or Lu's sigmas on a cosine schedule go beyond its own: timestep 999 comes several times."""
    scheduler = kind(beta_schedule="squaredcos_cap_v2", **{sigmas: True})
    timesteps = check_sampling(scheduler, 20)
    assert len(timesteps) > len(set(timesteps))
    run = dry_run(scheduler, [], 20)
    assert run.timesteps[0].tolist() == pytest.approx(timesteps) and run.latents.isfinite().all()


@pytest.mark.parametrize("options, steps, message", [
    ({"timestep_spacing": "leading"}, 501, "starts 501 steps at timestep 501 of 999"),
    ({"timestep_spacing": "linspace"}, 50, "this one of 50 steps is wider"),
    ({"timestep_spacing": "trailing"}, 700, "this one of 700 steps is wider"),
    ({"timestep_spacing": "leading"}, 50, None),
    ({"timestep_spacing": "trailing"}, 30, None),
    ({"timestep_spacing": "leading"}, 2, None),
])  # fmt: skip
def test_grids_that_diffusers_samples_wrongly_are_one_line(
    options: dict[str, Any], steps: int, message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_grid.cache_clear()
    for _ in range(3):
        check_sampling(scheduler_of(**options), steps)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (message is not None) and all(message in text for text in messages)
