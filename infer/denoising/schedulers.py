"""The diffusers schedulers that the loop serves: how they are built and checked, and their noise levels."""

import inspect
import logging
import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "dpm_single": "DPMSolverSinglestepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
Scheduler = Literal["own", *SCHEDULERS]
ZERO_SNR = "rescale_betas_zero_snr"
log = logging.getLogger(__name__)


def make_scheduler(own: Any, name: str = "own", timestep_spacing: str | None = None) -> Any:
    """The pipeline's own scheduler, or another kind with its noise schedule and prediction type.

    Where its config does not say, latents are not clipped (`clip_sample` is meant for pixels) and PNDM takes
    no Runge-Kutta warm-up (`skip_prk_steps`), as in Stable Diffusion's own configs.
    `timestep_spacing` (leading, linspace, trailing) replaces the one in its config. ValueError for a name or
    a spacing that this kind does not know, and for a kind that would drop the config's zero terminal SNR.
    """
    import diffusers

    if name not in ("own", *SCHEDULERS):
        raise ValueError(f"no scheduler {name!r}: there are own, {', '.join(SCHEDULERS)}")
    kind = type(own) if name == "own" else getattr(diffusers, SCHEDULERS[name])
    # what other kinds than the pipeline's have by default: pixels' range, and a warm-up that wastes steps
    takes = inspect.signature(kind.__init__).parameters
    if own.config.get(ZERO_SNR) and ZERO_SNR not in takes:
        raise ValueError(
            f"{kind.__name__} ignores {ZERO_SNR}, which this model's config sets: choose one of ddim, ddpm, "
            "dpm, euler, euler_ancestral, lcm, unipc"
        )
    ours = {"clip_sample": False, "skip_prk_steps": True}
    options = {key: value for key, value in ours.items() if key in takes and key not in own.config}
    if not timestep_spacing:
        return kind.from_config(own.config, **options)
    grids = []
    for spacing in ("leading", "trailing"):
        probe = kind.from_config(own.config, timestep_spacing=spacing, **options)
        probe.set_timesteps(4)
        grids.append(probe.timesteps.tolist())
    if grids[0] == grids[1]:
        raise ValueError(f"{kind.__name__} ignores timestep_spacing: leave it out")
    return kind.from_config(own.config, timestep_spacing=timestep_spacing, **options)


def check_scheduler(scheduler: Any) -> None:
    """ValueError unless it is one of SCHEDULERS and its model predicts noise or v."""
    name = type(scheduler).__name__
    if name not in SCHEDULERS.values():
        raise ValueError(f"{name} is not supported: choose a scheduler of {', '.join(SCHEDULERS)}")
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"prediction_type {scheduler.config.prediction_type!r}: only epsilon and v_prediction work"
        )


def set_timesteps(scheduler: Any, num_inference_steps: int) -> None:
    """Set the timesteps on the CPU; the solver counts its steps from 0, also where timesteps repeat.

    On the CPU a scheduler that finds a noise level by its timestep does not wait for the device.
    """
    scheduler.set_timesteps(num_inference_steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


def check_sampling(scheduler: Any, num_inference_steps: int) -> list[float]:
    """Set the timesteps and return them; ValueError where the loop cannot sample with this scheduler.

    A grid that stock diffusers, too, samples wrongly is one warning line.
    """
    check_scheduler(scheduler)
    name, known = type(scheduler).__name__, scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= known:
        raise ValueError(f"num_inference_steps must be within 1..{known}, not {num_inference_steps}")
    try:
        set_timesteps(scheduler, num_inference_steps)
    except ValueError as error:  # continues about options that are not ours
        why = re.split(r"(?<=\.)\s", str(error))[0]
        raise ValueError(f"{name} cannot take {num_inference_steps} steps: {why}") from error
    timesteps = scheduler.timesteps.tolist()
    outside = min(timesteps) < 0 or max(timesteps) >= known
    if outside or (len(set(timesteps)) == 1 and len(timesteps) > 1):
        what = f"timesteps from {timesteps[0]:g} to {timesteps[-1]:g}, outside of 0..{known - 1}"
        raise ValueError(
            f"{name} has no grid of {len(timesteps)} steps here, it gives "
            f"{what if outside else f'{timesteps[0]:g} each time'}: take another number"
        )
    smallest = min(alpha for alpha, _ in noise_levels(scheduler))
    if scheduler.config.prediction_type == "epsilon" and (
        smallest == 0 or (scheduler.config.get(ZERO_SNR) and smallest < 1e-3)
    ):
        raise ValueError(
            f"a model that predicts noise cannot start at zero signal: set {ZERO_SNR} to false in the "
            "scheduler's config, or timestep_spacing to leading"
        )
    warn_of_grid(name, tuple(timesteps), known, num_inference_steps)
    return timesteps


@cache
def warn_of_grid(name: str, timesteps: tuple[float, ...], known: int, steps: int) -> None:
    """One line, once, on a grid that starts far from noise, or is wider than the solver's steps."""
    stride, distinct = known // steps, sorted(set(timesteps))
    if known - 1 - timesteps[0] > known / 8 + 2 * stride:
        log.warning(
            "%s starts %d steps at timestep %g of %d, as if that were pure noise: take fewer steps, or "
            "another timestep_spacing", name, steps, timesteps[0], known - 1,
        )  # fmt: skip
    covered = distinct[-1] - distinct[0] - stride * (len(distinct) - 1)
    if name in ("DDIMScheduler", "PNDMScheduler") and covered > known / 100:
        log.warning(
            "%s takes steps of %d timesteps on every grid, and this one of %d steps is wider: some noise "
            "stays in the images; take timestep_spacing leading, or another scheduler", name, stride, steps,
        )  # fmt: skip


def noise_levels(scheduler: Any) -> list[tuple[float, float]]:
    """(alpha, sigma) of each timestep, alpha^2 + sigma^2 = 1.

    Schedulers with `sigmas` hold sigma / alpha; the others hold the cumulated alphas.
    """
    if hasattr(scheduler, "sigmas"):
        ratios = [float(sigma) for sigma in scheduler.sigmas[: len(scheduler.timesteps)]]
        return [(1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)) for ratio in ratios]
    kept = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps.tolist()]
    return [(math.sqrt(alpha), math.sqrt(1 - alpha)) for alpha in kept]


def first_informative_step(levels: Sequence[tuple[float, float]]) -> int:
    """Index of the first step with alpha > 0: at zero terminal SNR eps_c - eps_u = alpha (v_c - v_u) is 0."""
    return next(index for index, (alpha, _) in enumerate(levels) if alpha > 0)
