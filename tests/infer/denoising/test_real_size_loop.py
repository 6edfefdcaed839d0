"""The loop with a UNet of Stable Diffusion 2.1's size (866M random parameters) at 256 px, on the CPU.

  python -m pytest -m slow tests/infer/denoising/test_real_size_loop.py

Takes 5 GB of memory and some minutes on two cores.
"""

import resource
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised, denoise
from tests.infer.denoising.loops import scheduler_of

pytestmark = pytest.mark.slow
FULL = 7.5


def peak_memory() -> int:
    """The most that this process ever had in memory, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# The smaller dtype first: the peak that a process has had does not fall again.
@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    """SD 2.1's UNet with random weights, which want gradients: the loop must not keep any."""
    default = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(request.param)  # never a copy in another one: the peak of memory is the loop's
    try:
        return UNet2DConditionModel(
            sample_size=96, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True,
        ).eval()  # fmt: skip
    finally:
        torch.set_default_dtype(default)


def inputs(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Noise for 256 px, unconditional and conditional embeddings."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 4, 32, 32, generator=random)
    texts = torch.randn(2, count, 77, 1024, generator=random)
    return noise.to(dtype), *texts.to(dtype)


def run(unet: UNet2DConditionModel, count: int, steps: int, *rules: GuidanceRule) -> Denoised:
    """A run, and what is true of every run."""
    scheduler = scheduler_of(prediction="v_prediction")
    denoised = denoise(unet, scheduler, *inputs(count, unet.dtype), FULL, steps, rules)
    assert denoised.latents.shape == (count, 4, 32, 32) and denoised.latents.dtype == unet.dtype
    assert denoised.latents.isfinite().all() and not denoised.latents.requires_grad
    assert denoised.difference_rms.dtype == torch.float32
    return denoised


def test_memory_does_not_grow_with_the_steps(unet: UNet2DConditionModel) -> None:
    """What two steps need is enough for eight. First of all: a peak hides what stays below it."""
    run(unet, 1, 2)
    before = peak_memory()
    run(unet, 1, 8, StaticTransition(500, -2.0))
    assert peak_memory() - before < 0.1 * 2**30


@pytest.mark.parametrize("rules, steps, nfe", [
    ([], 2, 4), ([StaticTransition(500)], 2, 3), ([StaticTransition(650, -2.0)], 3, 6),
])  # fmt: skip
def test_evaluations_are_counted_and_samples_differ(
    unet: UNet2DConditionModel, rules: list[GuidanceRule], steps: int, nfe: int
) -> None:
    denoised = run(unet, 2, steps, *rules)
    assert denoised.nfe.tolist() == [nfe] * 2
    assert not torch.allclose(denoised.latents[0].float(), denoised.latents[1].float(), atol=0.1)
