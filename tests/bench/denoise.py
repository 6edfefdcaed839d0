"""How long denoising takes: stock diffusers, our loop, a mitigated pipeline, and each rule.

  python -m tests.bench.denoise [--pipeline data/emoji/base] [--steps 50] [--batch 4] [--repeats 5]

Every way makes the same prompts' images from the same seeds at the same settings, from text to pixels. Their
order turns round from repeat to repeat, so that a machine that slows down is nobody's disadvantage. It prints
the median seconds of a batch, their ratio to stock, and UNet rows per image. --device cuda takes a GPU.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from callbacks.adapters.stock import mitigate
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.hooks import GuidanceRule
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from infer.models.pipeline import load_pipeline

PROMPTS = ["a red car", "a blue dog", "an old map", "a cup of tea"]
RULES: dict[str, GuidanceRule] = {
    "STP": StaticTransition(500),
    "OG+STP": StaticTransition(650, -2.0),
    "DTP": DynamicTransition(),
}


@dataclass
class Timing:
    """Of one way to make a batch: median seconds, their ratio to stock, and UNet rows per image."""

    name: str
    seconds: float
    ratio: float
    rows: float


def ways(pipe: Any, steps: int, batch: int, scale: float) -> dict[str, Callable[[], Any]]:
    """By name, what makes a batch of images."""
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(batch)]
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    requests = [Request(f"s{number}", 0, prompt, number) for number, prompt in enumerate(prompts)]

    def stock(pipe: Any) -> Any:
        seeds = [torch.Generator().manual_seed(number) for number in range(batch)]
        return pipe(prompts, generator=seeds, num_inference_steps=steps, guidance_scale=scale)

    def ours(*rules: GuidanceRule) -> Any:
        return make_images(pipe, pipe.device, requests, side, scale, steps, rules=rules)

    twin = mitigate(pipe)
    made = {"stock": lambda: stock(pipe), "our loop": ours, "mitigate(pipe)": lambda: stock(twin)}
    return made | {name: lambda rule=rule: ours(rule) for name, rule in RULES.items()}


def rows_of(unet: Any, make: Callable[[], Any]) -> int:
    """Rows that the UNet evaluates for a batch: those of its first layer."""
    rows: list[int] = []
    hook = unet.conv_in.register_forward_hook(lambda module, given, output: rows.append(len(output)))
    try:
        make()
    finally:
        hook.remove()
    return sum(rows)


def measure(pipe: Any, steps: int, batch: int, repeats: int, scale: float) -> list[Timing]:
    """Each way once to warm up, which counts its rows; then all of them, forwards and backwards in turn."""
    made = ways(pipe, steps, batch, scale)
    rows = {name: rows_of(pipe.unet, make) for name, make in made.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for repeat in range(repeats):
        for name in list(made)[:: -1 if repeat % 2 else 1]:
            started = time.perf_counter()
            made[name]()  # ends with images on the CPU
            seconds[name].append(time.perf_counter() - started)
    stock = median(seconds["stock"])
    return [
        Timing(name, median(times), median(times) / stock, rows[name] / batch)
        for name, times in seconds.items()
    ]


def main(args: Sequence[str]) -> list[Timing]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.denoise", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--pipeline", default="data/emoji/base", help="diffusers folder or Hub id")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--guidance_scale", type=float, default=7.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    given = parser.parse_args(args)
    pipe = load_pipeline(given.pipeline, dtype=getattr(torch, given.dtype)).to(given.device)
    timings = measure(pipe, given.steps, given.batch, given.repeats, given.guidance_scale)
    table = Table(title=f"{given.pipeline}: {given.batch} images, {given.steps} steps, {given.dtype}")
    for column in ("", "seconds", "to stock", "UNet rows/image"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for timing in timings:
        numbers = (f"{timing.seconds:.3f}", f"{timing.ratio:.2f}", f"{timing.rows:g}")
        table.add_row(timing.name, *numbers)
    Console().print(table)
    return timings


if __name__ == "__main__":
    main(sys.argv[1:])
