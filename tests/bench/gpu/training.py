"""Training: images a second and MFU, and whether all ways to train give the same losses."""

import torch

from tests.bench.gpu.fits import Fit, fit
from tests.bench.gpu.flops import flops_of_step, peak_flops
from tests.bench.gpu.page import Page
from tests.bench.gpu.setting import Setting, write_model
from train.plan.sizes import read_configs

LEAST = 1e-3  # of the loss: rounding, where two identical fits do not differ at all
TIMES = 4  # an error within this many times the noise that was seen once is noise


def model(setting: Setting, seconds: float, page: Page) -> None:
    """Write the model, and measure what the card does at most."""
    write_model(setting)
    for dtype in (setting.dtype, torch.float32):
        peak = peak_flops(setting.device, dtype, setting.matmul, min(2, seconds / 20))
        name = str(dtype).removeprefix("torch.")
        page.say(f"peak in {name}", tera(peak), f"product of two matrices of {setting.matmul} rows")


def training(setting: Setting, seconds: float, page: Page) -> None:
    """Images a second of one process: without a strategy, in DDP, sharded, and with checkpointing.

    The losses of the first steps, the second of which follows an update, are then those of the first fit.
    """
    config, tokens = shapes(setting)
    flops = flops_of_step(config, setting.batch_size, tokens)
    page.say("operations of a step", f"{flops / 1e12:.4g} TFLOP", f"UNet, {setting.batch_size} images")
    peak = peak_flops(setting.device, setting.dtype, setting.matmul, min(2, seconds / 20))

    def timed(name: str, **options: str) -> Fit:
        done = fit(setting, name.replace(" ", "_"), setting.steps, seconds / 12, **options)
        speed, mfu = setting.batch_size / done.step_seconds, flops / done.step_seconds / peak
        note = f"MFU {mfu:.1%}, {done.peak_gib:.1f} GiB, bf16-mixed, AdamW, cached latents"
        page.say(name, f"{speed:.4g} images/s", note)
        return done

    one = timed("one device")
    noise = difference(one, timed("one device again"))
    for name in ("ddp", "sharded"):
        note = f"relative difference of losses to one device's; of two fits of it {noise:.2g}"
        done = timed(name, trainer__strategy=name)
        page.check(f"{name} trains alike", difference(one, done), max(LEAST, TIMES * noise), note)
    timed("gradient checkpointing", model__gradient_checkpointing="true")


def loading(setting: Setting, seconds: float, page: Page) -> None:
    """Pinned memory changes no bit of the batches; bf16 changes the first loss by its rounding."""
    pinned, plain = (fit(setting, f"pin_{pin}", 1, seconds, pin) for pin in (True, False))
    same = len([None for one, other in zip(pinned.batches, plain.batches, strict=True) if one == other])
    what = f"batches that are other bits on the device, of {len(plain.batches)}"
    page.check("pin_memory", len(plain.batches) - same, 0, what)
    full = fit(setting, "fp32", 1, seconds, trainer__precision="32-true")
    error = abs(plain.losses[0] - full.losses[0]) / full.losses[0]
    tolerance = TIMES * torch.finfo(setting.dtype).eps
    page.check("bf16-mixed loss", error, tolerance, "relative, to fp32 in the first step; 4 eps of bf16")


def difference(one: Fit, other: Fit) -> float:
    """The largest of the steps', relative to the loss."""
    pairs = zip(one.losses, other.losses, strict=True)
    return max(abs(a - b) / a for a, b in pairs)


def shapes(setting: Setting) -> tuple[dict, int]:
    """The UNet's config and the tokens of a text."""
    configs = read_configs(setting.model)
    return configs["unet"], configs["tokenizer"]["model_max_length"]


def tera(flops: float) -> str:
    return f"{flops / 1e12:.4g} TFLOP/s"
