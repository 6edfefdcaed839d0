"""Training: images a second and MFU, and whether all ways to train give the same losses."""

import torch

from tests.bench.gpu.fits import Fit, fit
from tests.bench.gpu.flops import flops_of_step, peak_flops
from tests.bench.gpu.page import Page
from tests.bench.gpu.setting import Setting, write_model
from train.plan.sizes import read_configs

LEAST = 2e-3  # of the loss, a quarter of bf16's eps: rounding, where two equal fits do not differ at all
TIMES = 4  # an error within this many times the noise that was seen once is noise


def model(setting: Setting, seconds: float, page: Page) -> None:
    """Write the model, and measure what the card does at most."""
    write_model(setting)
    for dtype in (setting.dtype, torch.float32):
        peak = peak_flops(setting.device, dtype, setting.matmul, min(2, seconds / 20))
        name = str(dtype).removeprefix("torch.")
        page.say(f"peak in {name}", tera(peak), f"product of two matrices of {setting.matmul} rows")


def training(setting: Setting, seconds: float, page: Page) -> None:
    """Images a second of one process in bf16-mixed: plain, in DDP, sharded, with checkpointing; and in fp32.

    The losses of the first steps, the second of which follows an update, are those of the first fit.
    """
    config, tokens = shapes(setting)
    flops = flops_of_step(config, setting.batch_size, tokens)
    page.say("operations of a step", f"{flops / 1e12:.4g} TFLOP", f"UNet, {setting.batch_size} images")
    peak = peak_flops(setting.device, setting.dtype, setting.matmul, min(2, seconds / 20))

    def timed(name: str, pin: bool | None = None, **options: str) -> Fit:
        done = fit(setting, name.replace(" ", "_"), setting.steps, seconds / 14, pin, **options)
        speed, mfu = setting.batch_size / done.step_seconds, flops / done.step_seconds / peak
        note = f"MFU {mfu:.1%}, {done.peak_gib:.1f} GiB, AdamW, cached latents"
        page.say(name, f"{speed:.4g} images/s", note)
        return done

    one, plain = timed("one device", pin=True), timed("not pinned", pin=False)
    other = sum(a != b for a, b in zip(one.batches, plain.batches, strict=True))
    page.check("pin_memory", other, 0, f"batches that are other bits on the device, of {len(one.batches)}")
    noise = max(differences(one, plain))
    for name in ("ddp", "sharded"):
        each = differences(one, timed(name, trainer__strategy=name))
        note = f"relative difference of losses to one device's, steps 1 and 2 {each[0]:.1g} and {each[1]:.1g}"
        tolerance = max(LEAST, TIMES * noise)
        page.check(f"{name} trains alike", max(each), tolerance, f"{note}; of two fits of it {noise:.2g}")
    timed("gradient checkpointing", model__gradient_checkpointing="true")
    full = timed("fp32", trainer__precision="32-true")
    tolerance = TIMES * torch.finfo(setting.dtype).eps
    note = "relative, to fp32 in the first step; 4 eps of bf16"
    page.check("bf16-mixed loss", differences(full, one)[0], tolerance, note)


def differences(one: Fit, other: Fit) -> list[float]:
    """Of the losses of the first steps, relative to the loss."""
    return [abs(a - b) / a for a, b in zip(one.losses, other.losses, strict=True)]


def shapes(setting: Setting) -> tuple[dict, int]:
    """The UNet's config and the tokens of a text."""
    configs = read_configs(setting.model)
    return configs["unet"], configs["tokenizer"]["model_max_length"]


def tera(flops: float) -> str:
    return f"{flops / 1e12:.4g} TFLOP/s"
