"""The loop with a UNet of Stable Diffusion 2.1's size (866M random parameters) at 256 px, on the CPU.

  python -m pytest -m slow -s tests/infer/denoising/test_real_size_loop.py

Takes 5 GB of memory and some minutes on two cores; -s prints seconds per UNet row and the memory.
"""

import gc
import resource
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised, denoise

pytestmark = pytest.mark.slow
FULL = 7.5
GIB = 2**30


def peak_memory() -> int:
    """The most that this process ever had in memory, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Watched(torch.nn.Module):
    """The UNet; keeps the rows and the seconds of each call."""

    def __init__(self, unet: torch.nn.Module):
        super().__init__()
        self.unet, self.calls = unet, []

    def forward(self, sample: Tensor, *args: Tensor, **options: Tensor) -> tuple[Tensor]:
        started = time.perf_counter()
        output = self.unet(sample, *args, **options)
        self.calls.append((len(sample), time.perf_counter() - started))
        return output

    @property
    def rows(self) -> list[int]:
        return [rows for rows, _ in self.calls]


def built(dtype: torch.dtype) -> UNet2DConditionModel:
    """SD 2.1's UNet with random weights, which want gradients: the loop must not keep any."""
    default = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # never a copy in another one: the peak of memory is the loop's
    try:
        return UNet2DConditionModel(
            sample_size=96, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True,
        ).eval()  # fmt: skip
    finally:
        torch.set_default_dtype(default)


# The smaller dtype first: the peak that a process has had does not fall again.
@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def unet(request: pytest.FixtureRequest) -> Iterator[Watched]:
    watched = Watched(built(request.param))
    assert sum(weight.numel() for weight in watched.parameters()) == 865_910_724
    weights = sum(weight.nbytes for weight in watched.parameters())
    yield watched
    seconds = sum(seconds for _, seconds in watched.calls) / sum(watched.rows)
    print(
        f"\n{request.param}: {sum(watched.rows)} UNet rows, {seconds:.2f} s each at 256 px on "
        f"{torch.get_num_threads()} threads; {weights / GIB:.2f} GiB of weights, "
        f"{peak_memory() / GIB:.2f} at most"
    )
    del watched.unet
    gc.collect()


def inputs(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Noise for 256 px, unconditional and conditional embeddings."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 4, 32, 32, generator=random)
    texts = torch.randn(2, count, 77, 1024, generator=random)
    return noise.to(dtype), *texts.to(dtype)


def scheduler() -> DDIMScheduler:
    """SD 2.1's."""
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip


def run(unet: Watched, count: int, steps: int, *rules: GuidanceRule) -> Denoised:
    """With the UNet's calls of this run only, and what is true of every run."""
    before, dtype = len(unet.calls), unet.unet.dtype
    denoised = denoise(unet, scheduler(), *inputs(count, dtype), FULL, steps, rules)
    assert denoised.latents.shape == (count, 4, 32, 32) and denoised.latents.dtype == dtype
    assert denoised.latents.isfinite().all() and (denoised.failed_at == -1).all()
    assert denoised.timesteps.shape == (count, steps) and denoised.difference_rms.dtype == torch.float32
    assert not denoised.latents.requires_grad
    assert sum(unet.rows[before:]) == denoised.nfe.sum()
    return denoised


def test_memory_does_not_grow_with_the_steps(unet: Watched) -> None:
    """What two steps need is enough for eight. First of all: a peak hides what stays below it."""
    run(unet, 1, 2)
    before = peak_memory()
    run(unet, 1, 8, StaticTransition(500, -2.0))
    assert peak_memory() - before < 0.1 * GIB


def test_ordinary_guidance(unet: Watched) -> None:
    """Two samples, whose latents differ; in float32 a sample alone is the same."""
    denoised = run(unet, 2, 2)
    assert denoised.nfe.tolist() == [4, 4] and denoised.transition_timestep is None
    assert not torch.allclose(denoised.latents[0].float(), denoised.latents[1].float(), atol=0.1)
    if unet.unet.dtype == torch.float32:
        noise, unconditional, conditional = (x[:1] for x in inputs(2, torch.float32))
        alone = denoise(unet, scheduler(), noise, unconditional, conditional, FULL, 2)
        assert torch.allclose(alone.latents[0], denoised.latents[0], atol=1e-3)


@pytest.mark.parametrize(
    "rule, steps, nfe, scales",
    [
        (StaticTransition(500), 2, 3, [0.0, FULL]),
        (StaticTransition(650, -2.0), 3, 6, [-2.0, FULL, FULL]),
        (StaticTransition(650, 1.0), 3, 5, [1.0, FULL, FULL]),
    ],
    ids=["STP", "OG+STP", "conditional before"],
)
def test_static(unet: Watched, rule: GuidanceRule, steps: int, nfe: int, scales: list[float]) -> None:
    denoised = run(unet, 1, steps, rule)
    assert denoised.nfe.tolist() == [nfe] and denoised.guidance_scale.tolist() == [scales]
    assert denoised.transition_timestep.item() == denoised.timesteps[0, scales.index(FULL)]
