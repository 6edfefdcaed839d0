"""What a comparison would make, how long it takes and what it costs, as tables."""

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from data.files import redacted
from infer.compare.options import Comparison, Job
from infer.denoising.requests import Requests
from infer.plan.measure import Measured, Missing
from infer.plan.rows import table_of
from infer.plan.words import assumption, device_name, duration, rounded
from infer.predict.claim import differences, read_config
from infer.predict.parts import finished


def missing_of(comparison: Comparison, job: Job, requests: Requests, devices: int) -> Missing:
    """What the job's folder holds and lacks; ValueError where it holds images of another run."""
    folder = Path(comparison.out) / job.label
    there = int(finished(folder, requests).sum())
    if there:
        before, now = read_config(folder), redacted(job.model.identity() | comparison.identity(requests))
        now["mitigations"] = [rule.identity() for rule in job.mitigations]
        if changed := differences({key: before.get(key) for key in now}, now):
            raise ValueError(
                f"{folder} holds a different run ({'; '.join(changed)}): choose another --out, or delete it"
            )
    images = len(requests) - there
    return Missing(job, there, images, -(-images // devices))


def plan_table(comparison: Comparison, requests: Requests, jobs: list[Missing], devices: int) -> Table:
    """Model, prompts, batch and number of images."""
    model, missing = comparison.model, sum(job.images for job in jobs)
    return table_of(
        "plan",
        {
            "model": redacted(model.pipeline),
            "base model": redacted(comparison.base_pipeline) if comparison.base_model else "none",
            "prompts": f"{len(requests.prompts):,}, {requests.samples_per_prompt} images of each",
            "steps": f"{model.num_inference_steps}, guidance {model.guidance_scale:g}",
            "batch": f"{comparison.batch_size} per device, {devices} device{'s' * (devices > 1)}",
            "images": f"{len(requests) * len(jobs):,} of {len(jobs)} runs, {missing:,} to make",
            "folder": comparison.out,
        },
    )


def runs_table(
    jobs: list[Missing], devices: int, measured: Measured | None, scoring: float, price_per_hour: float | None
) -> Table:
    """A line per run, and if it was measured what its images need, what loading and scoring need, and all."""
    table, total = Table(title="runs"), 0.0
    longest = max(len(job.label) for job, *_ in jobs)
    table.add_column("mitigation", overflow="fold", min_width=min(longest, 24))
    names = ["there", "to make", *(["UNet evaluations", "an image", "time"] if measured else [])]
    for name in [*names, *(["cost"] if measured and price_per_hour else [])]:
        table.add_column(name, justify="right")

    def line(name: str, cells: list[str], seconds: float) -> None:
        nonlocal total
        total += seconds
        if measured:
            cells.append(duration(seconds))
            if price_per_hour:
                cells.append(rounded(seconds / 3600 * devices * price_per_hour))
        table.add_row(escape(name), *cells)

    for job, there, images, on_one in jobs:
        cells, each = [f"{there:,}", f"{images:,}"], 0.0
        if measured and images:
            each = measured.image[job.label]
            cells += [f"{measured.nfe[job.label]:.0f}", duration(each)]
        elif measured:
            cells += ["", ""]
        line(job.label, cells, on_one * each)
    if measured:
        table.add_section()
        line("loading", [""] * 4, measured.start)
        line("scoring", [""] * 4, scoring)
        table.add_section()
        line("all", [""] * 4, total)
    return table


def measured_table(measured: Measured, batch: int, devices: int, price_per_hour: float | None) -> Table:
    """What was measured, and what is taken for granted."""
    larger = f", scaled to batches of {batch} by calls of the UNet" if batch > measured.images else ""
    return table_of(
        "measured",
        {
            "images": f"{measured.images} of each on one {device_name(measured.device)}{larger}",
            "assumed": assumption(devices) if devices > 1 else None,
            "peak memory": f"{rounded(measured.peak_gib)} GiB" if measured.peak_gib else None,
            "scoring": "of all images, without table and page; less where embeddings are cached",
            "cost": f"at {price_per_hour:g} per hour of each device" if price_per_hour else None,
        },
    )
