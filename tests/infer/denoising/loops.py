"""What the tests of the denoising loop share: schedulers, inputs, and plain loops written by hand."""

from collections.abc import Callable

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverSinglestepScheduler
from torch import Generator, Tensor

from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised, denoise
from infer.denoising.requests import Request
from tests.conftest import CAPTIONS

KEPT = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)  # alpha^2 of each timestep


def scheduler_of(kind: type = DDIMScheduler, prediction: str = "epsilon", **options):
    """Stable Diffusion's noise schedule on leading timesteps, 981 to 1 for 50 DDIM steps."""
    own = {
        DDIMScheduler: {"clip_sample": False, "set_alpha_to_one": False},
        DDPMScheduler: {"clip_sample": False},
    }
    grid = {"steps_offset": 1, "timestep_spacing": "leading"}
    if kind is DPMSolverSinglestepScheduler:  # has no such options
        grid = {}
    return kind(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction,
        **own.get(kind, {}) | grid | options,
    )  # fmt: skip


def inputs(count: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, unconditional and conditional embeddings for the random UNet; of some of the rows."""
    random = Generator().manual_seed(0)
    shapes = (count, 4, 8, 8), (count, 8, 32), (count, 8, 32)
    return tuple(torch.randn(shape, generator=random)[rows] for shape in shapes)


def requests(count: int, **columns: list) -> list[Request]:
    """Of the first captions; `columns` are further fields of theirs."""
    rows = [Request(f"s{n}", 0, CAPTIONS[n], 1000 + n) for n in range(count)]
    for name, values in columns.items():
        rows = [row._replace(**{name: value}) for row, value in zip(rows, values, strict=True)]
    return rows


def dry_run(scheduler, rules: list[GuidanceRule], steps: int = 50) -> Denoised:
    """The loop with a network that says nothing."""

    def zeros(x: Tensor, t: Tensor, **options) -> tuple[Tensor]:
        return (torch.zeros_like(x),)

    return denoise(zeros, scheduler, *inputs(1), 7.5, steps, rules)


@torch.no_grad()
def walk(
    scheduler, noise: Tensor, steps: int, predict: Callable[[int, Tensor, Tensor], Tensor],
    generator: Generator | None = None,
) -> list[Tensor]:  # fmt: skip
    """The latents before each step and after the last.

    Args:
        predict: (index, timestep, model input) -> the prediction that the solver is given.
        generator: of a stochastic solver's noise.
    """
    scheduler.set_timesteps(steps)
    drawn = {} if generator is None else {"generator": generator}
    kept = [noise * scheduler.init_noise_sigma]
    for index, t in enumerate(scheduler.timesteps):
        prediction = predict(index, t, scheduler.scale_model_input(kept[-1], t))
        kept += scheduler.step(prediction, t, kept[-1], **drawn, return_dict=False)[:1]
    return kept


def by_hand(
    network: Callable, scheduler, given: tuple[Tensor, Tensor, Tensor], steps: int,
    guide: Callable[[int, float, Tensor, Tensor], Tensor], generator: Generator | None = None,
) -> list[Tensor]:  # fmt: skip
    """A walk that evaluates both predictions of all rows and mixes them by `guide(index, timestep, u, c)`.

    `given` is noise, unconditional and conditional embeddings.
    """
    noise, *embeddings = given

    def predict(index: int, t: Tensor, x: Tensor) -> Tensor:
        u, c = (network(x, t, encoder_hidden_states=e, return_dict=False)[0] for e in embeddings)
        return guide(index, t.item(), u, c)

    return walk(scheduler, noise, steps, predict, generator)
