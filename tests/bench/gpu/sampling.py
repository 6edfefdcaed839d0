"""Sampling: images a second under each mitigation, and of diffusers' own pipeline, on the same card."""

import time
from statistics import median

import numpy as np

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from infer.models.memory import peak_gib, reset_peak
from infer.models.pipeline import load_pipeline
from tests.bench.denoising import ours, stock
from tests.bench.gpu.page import Page
from tests.bench.gpu.setting import Setting
from tests.bench.rows import Side, seconds_of

RULES = {
    "none": [],
    "stp (500)": [StaticTransition(500)],
    "dtp": [DynamicTransition()],
    "og_stp (650, -2)": [StaticTransition(650, -2.0)],
}
LEVELS, TIMES = 0.5, 4  # of 255: less is the rounding of pixels; how often the noise that was seen


def sampling(setting: Setting, seconds: float, page: Page) -> None:
    """All sides make the same batch, in turn, from the text to PIL images; the first round is not timed."""
    pipe, rows, batch = load_pipeline(setting.model, dtype=setting.dtype), setting.rows(), setting.batch_size
    pipe.to(setting.device)
    reset_peak(pipe.device)
    sides: dict[str, Side] = {"diffusers": stock(rows, pipe, batch)}
    sides |= {name: ours(rows, pipe, batch, *rules) for name, rules in RULES.items()}
    images = {name: side() for name, side in sides.items()}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    started = round_seconds = 0.0
    until = time.perf_counter() + 0.6 * seconds
    for _ in range(setting.rounds):
        started = time.perf_counter()
        if round_seconds and started + round_seconds > until:
            break
        for name, side in sides.items():
            taken[name].append(seconds_of(side, setting.device))
        round_seconds = time.perf_counter() - started
    reference = median(taken["diffusers"])
    for name, each in taken.items():
        note = f"{reference / median(each):.2f} times diffusers' speed, {len(each)} rounds of {batch}"
        if name in RULES:
            _, denoised = images[name]
            note += f", {denoised.nfe.float().mean():g} UNet rows an image"
        page.say(name, f"{batch / median(each):.4g} images/s", note)
    page.say("peak memory", f"{peak_gib(pipe.device):.1f} GiB", f"{setting.dtype}, decoding included")
    check_images(images, stock(rows, pipe, 1)(), page)


def check_images(images: dict, alone: object, page: Page) -> None:
    """Without a rule the images are diffusers', up to what a batch of another size changes there."""
    theirs, mine = pixels(images["diffusers"].images), pixels(images["none"][0])
    noise = np.abs(pixels(alone.images)[0] - theirs[0]).mean()
    error = float(np.abs(mine - theirs).mean())
    note = f"mean difference of 255; of diffusers alone to its own in a batch {noise:.2g}"
    page.check("none gives diffusers' images", error, max(LEVELS, TIMES * noise), note)


def pixels(images: list) -> np.ndarray:
    return np.stack([np.asarray(image, float) for image in images])
