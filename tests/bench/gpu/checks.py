"""Whether 16 bits and compiled code give what 32 bits and eager code give."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.loop import denoise
from infer.models.pipeline import load_pipeline
from infer.plan.clock import now
from tests.bench.gpu.page import Page
from tests.bench.gpu.setting import Setting

TIMES = 6  # activations are rounded some times in each layer, weights once
FUSED = 1.5  # compiled code rounds less often, or elsewhere
STEPS, CALLS = 4, 10
TIMESTEP = 500


@contextmanager
def exact() -> Iterator[None]:
    """32 bits as such: no TF32, in which cuDNN convolves by default."""
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [each.allow_tf32 for each in flags]
    for each in flags:
        each.allow_tf32 = False
    try:
        yield
    finally:
        for each, allowed in zip(flags, before, strict=True):
            each.allow_tf32 = allowed


def inputs(setting: Setting, unet: Any, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents and both texts of two samples, of numbers that 16 bits hold; drawn on the CPU."""
    config, random = unet.config, torch.Generator().manual_seed(0)
    latents = torch.randn(2, config.in_channels, *[config.sample_size] * 2, generator=random)
    texts = torch.randn(2, 2, tokens, config.cross_attention_dim, generator=random)
    rounded = (each.to(setting.dtype).float().to(setting.device) for each in (latents, *texts))
    return tuple(rounded)


def relative(one: Tensor, other: Tensor) -> float:
    """RMS of the difference, relative to the second."""
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


@torch.no_grad()
def predict(unet: Callable, dtype: torch.dtype, latents: Tensor, _: Tensor, text: Tensor) -> Tensor:
    timestep = torch.tensor(TIMESTEP, device=latents.device)
    return unet(latents.to(dtype), timestep, encoder_hidden_states=text.to(dtype), return_dict=False)[0]


def sampled(unet: Any, scheduler: Any, dtype: torch.dtype, *given: Tensor) -> Tensor:
    """Latents of a few steps with a static transition, in which batches of two sizes are evaluated."""
    run = denoise(unet, scheduler, *(each.to(dtype) for each in given), 7.5, STEPS, [StaticTransition(500)])
    return run.latents


def precision(setting: Setting, seconds: float, page: Page) -> None:
    """A prediction in bf16 against fp32. The noise is what rounding the weights alone does, in fp32."""
    pipe = load_pipeline(setting.model)
    unet = pipe.unet.to(setting.device)
    given = inputs(setting, unet, pipe.tokenizer.model_max_length)
    with exact():
        full = predict(unet, torch.float32, *given)
        unet.to(setting.dtype)
        low = predict(unet, setting.dtype, *given)
        unet.to(torch.float32)  # whose weights stay rounded
        noise = relative(predict(unet, torch.float32, *given), full)
    note = f"relative RMS of the prediction to fp32's; with rounded weights alone {noise:.2g}"
    page.check("bf16 is close to fp32", relative(low, full), TIMES * noise, note)


def compiled(setting: Setting, seconds: float, page: Page) -> None:
    """torch.compile in bf16, against fp32: at most 1.5 times as far from it as eager bf16."""
    pipe = load_pipeline(setting.model)
    unet, scheduler = pipe.unet.to(setting.device), pipe.scheduler
    given = inputs(setting, unet, pipe.tokenizer.model_max_length)
    with exact():
        full = predict(unet, torch.float32, *given)
        full_latents = sampled(unet, scheduler, torch.float32, *given)
    unet.to(setting.dtype)
    error = relative(predict(unet, setting.dtype, *given), full)
    loop_error = relative(sampled(unet, scheduler, setting.dtype, *given), full_latents)
    fast = torch.compile(unet, backend=setting.backend, dynamic=False)
    started = time.perf_counter()
    own = relative(predict(fast, setting.dtype, *given), full)
    page.say("compiling", f"{now(setting.device) - started:.1f} s", f"{setting.backend}, first call")
    note = f"relative RMS of the prediction to fp32's; of eager bf16 {error:.2g}"
    page.check("compiled is as eager", own, FUSED * error, note)
    calls = [seconds_of_calls(each, setting, given) for each in (unet, fast)]
    note = f"2 rows; eager takes {calls[0] / calls[1]:.2f} times as long"
    page.say("a call, compiled", f"{calls[1] * 1e3:.4g} ms", note)
    own = relative(sampled(fast, scheduler, setting.dtype, *given), full_latents)
    note = f"relative RMS of latents after {STEPS} steps to fp32's; of eager bf16 {loop_error:.2g}"
    page.check("compiled in our loop, stp", own, FUSED * loop_error, note)


def seconds_of_calls(unet: Callable, setting: Setting, given: tuple[Tensor, ...]) -> float:
    """Of one call, the mean of some after a first one."""
    predict(unet, setting.dtype, *given)
    started = now(setting.device)
    for _ in range(CALLS):
        predict(unet, setting.dtype, *given)
    return (now(setting.device) - started) / CALLS
