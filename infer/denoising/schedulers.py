"""The diffusers schedulers that the loop serves, their noise levels, and how one is taken up midway."""

import copy
import inspect
import math
from collections.abc import Sequence
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


def make_scheduler(own: Any, name: str = "own", timestep_spacing: str | None = None) -> Any:
    """The pipeline's own scheduler, or another kind with its noise schedule and prediction type.

    Where its config does not say, latents are not clipped (`clip_sample` is meant for pixels) and PNDM takes
    no Runge-Kutta warm-up (`skip_prk_steps`), as in Stable Diffusion's own configs.
    `timestep_spacing` (leading, linspace, trailing) replaces the one in its config. ValueError for a name or
    a spacing that this kind does not know.
    """
    import diffusers

    if name not in ("own", *SCHEDULERS):
        raise ValueError(f"no scheduler {name!r}: there are own, {', '.join(SCHEDULERS)}")
    kind = type(own) if name == "own" else getattr(diffusers, SCHEDULERS[name])
    # what other kinds than the pipeline's have by default: pixels' range, and a warm-up that wastes steps
    takes = inspect.signature(kind.__init__).parameters
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
        raise ValueError(f"{kind.__name__} does not heed timestep_spacing: leave it out")
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


def check_grid(scheduler: Any) -> None:
    """ValueError where its timesteps leave the schedule or stand still, as some grids of extreme sizes do."""
    timesteps, known = scheduler.timesteps.tolist(), scheduler.config.num_train_timesteps
    outside = min(timesteps) < 0 or max(timesteps) >= known
    if outside or (len(set(timesteps)) == 1 and len(timesteps) > 1):
        what = f"timesteps from {timesteps[0]:g} to {timesteps[-1]:g}, outside of 0..{known - 1}"
        raise ValueError(
            f"{type(scheduler).__name__} has no grid of {len(timesteps)} steps here, it gives "
            f"{what if outside else f'{timesteps[0]:g} each time'}: take another number"
        )


def noise_levels(scheduler: Any) -> list[tuple[float, float]]:
    """(alpha, sigma) of each timestep, alpha^2 + sigma^2 = 1.

    Schedulers with `sigmas` hold sigma / alpha; the others are asked for the cumulated alphas.
    """
    if hasattr(scheduler, "sigmas"):
        ratios = [float(sigma) for sigma in scheduler.sigmas[: len(scheduler.timesteps)]]
        return [(1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)) for ratio in ratios]
    kept = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps.tolist()]
    return [(math.sqrt(alpha), math.sqrt(1 - alpha)) for alpha in kept]


def first_informative_step(levels: Sequence[tuple[float, float]]) -> int:
    """Index of the first step with alpha > 0: at zero terminal SNR eps_c - eps_u = alpha (v_c - v_u) is 0."""
    return next(index for index, (alpha, _) in enumerate(levels) if alpha > 0)


def continued(scheduler: Any, index: int, num_inference_steps: int | None) -> tuple[Any, Any]:
    """A fresh solver and its timesteps from `scheduler.timesteps[index]` on: the noise level stays the same.

    None: the rest of the same grid, without the history of a multistep solver. A number: the rest of the grid
    of so many steps over the whole schedule. ValueError where this scheduler cannot do that.
    """
    fresh, name = copy.deepcopy(scheduler), type(scheduler).__name__
    if num_inference_steps is None:
        if not hasattr(scheduler, "lower_order_nums"):
            raise ValueError(f"{name} has no history to restart: use one of dpm, unipc, deis")
        fresh.set_timesteps(scheduler.num_inference_steps)
        fresh.set_begin_index(index)
        return fresh, fresh.timesteps[index:]
    if name not in ("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"):
        raise ValueError(f"{name} cannot change its grid midway: use one of ddim, dpm, euler")
    start, *coarse = scheduler.timesteps[index:].tolist()
    fresh.set_timesteps(num_inference_steps)
    check_grid(fresh)
    dense = [t for t in fresh.timesteps.tolist() if t < start]
    if name == "DDIMScheduler":  # its step is always 1000 / num_inference_steps long
        stride = fresh.config.num_train_timesteps // num_inference_steps
        grid = [start, *dense]
        if any(a - b != stride for a, b in zip(grid, dense, strict=False)):
            before, known = scheduler.num_inference_steps, fresh.config.num_train_timesteps
            whole = [n for n in range(before + 1, known) if known % n == known % before == 0]
            fitting = ", ".join(str(n) for n in whole if known // before % (known // n) == 0)
            raise ValueError(
                f"a grid of {num_inference_steps} DDIM steps does not meet timestep {start:g} of one of "
                f"{before}: {fitting or 'no other'} would"
            )
        return fresh, fresh.timesteps.new_tensor(grid)
    # the denser grid may begin further down: no step is longer than on the grid before
    fresh.set_timesteps(timesteps=[start, *(t for t in coarse if not dense or t > dense[0]), *dense])
    return fresh, fresh.timesteps
