"""`python -m infer plan`."""

import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from data.arguments import options_of, with_prompts, with_sweep
from infer.compare.options import Comparison
from infer.denoising.hooks import GuidanceRule
from infer.options import TrainerOptions, device_of
from infer.plan.measure import measure
from infer.plan.options import ComparisonPlan, with_measure
from infer.plan.scoring import time_scoring
from infer.plan.scratch import scratch
from infer.plan.table import measured_table, missing_of, plan_table, runs_table
from infer.plan.words import are_here, device_count

# (preset, options in place of its own) -> label and mitigations
Load = Callable[..., tuple[str, list[GuidanceRule]]]


def plan(args: list[str], others: list[type], load: Load) -> None:
    """Say what a comparison would make: images, and if measured UNet evaluations, time and cost."""
    # `others` are options that a comparison's config may have, and that a plan does not need
    args = with_measure(with_sweep(with_prompts(args)))
    comparison, options, *_ = options_of([Comparison, ComparisonPlan, *others], plan, args)
    requests, console = comparison.requests(), Console()
    devices = device_count(comparison.trainer.devices, comparison.trainer.accelerator)
    jobs = [missing_of(comparison, job, requests, devices) for job in comparison.plan(load)]
    console.print(plan_table(comparison, requests, jobs, devices))
    lacking, measured, scoring = [job for job in jobs if job.images], None, 0.0
    if options.measure and lacking:
        device = measured_device(comparison.trainer)
        batch = list(islice(requests, comparison.batch_size))
        print("measuring a few images of each run ...", file=sys.stderr, flush=True)
        with scratch(Path(comparison.out)) as folder:
            measured = measure(lacking, batch, device, folder, options.measure_images)
            times = time_scoring(comparison, measured.resolution, device, folder / "scores")
            scoring = times.seconds(len(requests) * len(jobs))
        console.print(measured_table(measured, len(batch), devices, options.price_per_hour))
    console.print(runs_table(jobs, devices, measured, scoring, options.price_per_hour))


def measured_device(options: TrainerOptions) -> torch.device:
    """The first device of these options; ValueError where it is not here."""
    if not are_here(1, options.accelerator):
        raise ValueError(
            f"trainer.accelerator {options.accelerator} is not here: measure on a machine that has it, or "
            "leave --measure out"
        )
    return device_of("cpu" if options.accelerator == "cpu" else None)
