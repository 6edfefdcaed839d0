"""Make a few images of each mitigation, to see how long all of them take."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from infer.compare.options import Job
from infer.denoising.requests import Request
from infer.models.memory import peak_gib
from infer.plan.clock import now
from infer.predict.module import Generate
from infer.predict.run_folder import save_image

SECONDS = 60  # of all images that are made to be timed, about
CALL_SECONDS = 2  # of a UNet call from which on larger batches are taken to be no quicker an image


class Missing(NamedTuple):
    """A job, and how many of its images are there and are to be made, by all devices and by one."""

    job: Job
    there: int
    images: int
    on_one: int


@dataclass
class Measured:
    """What images cost, as measured on one device.

    Attributes:
        device: what was measured.
        images: of each mitigation that were timed, in a batch.
        start: seconds of loading the models, and of what first images take longer than the second one.
        image: seconds of one, in a batch of the job's size, by mitigation.
        nfe: UNet evaluations of an image, by mitigation.
        resolution: width and height of the images in pixels.
        peak_gib: the most memory that was held; 0 where that is not known.
    """

    device: torch.device
    images: int = 0
    start: float = 0.0
    image: dict[str, float] = field(default_factory=dict)
    nfe: dict[str, float] = field(default_factory=dict)
    resolution: int = 0
    peak_gib: float = 0.0


def measure(
    jobs: list[Missing], requests: list[Request], device: torch.device, folder: Path, images: int | None
) -> Measured:
    """Time the jobs; files go to `folder` alone.

    Args:
        jobs: those that lack images.
        requests: the first batch.
        device: to run on.
        folder: for the images.
        images: of each job; None: as many as take about a minute in all.
    """
    of, module = Measured(device), None
    for number, (job, _, _, on_one) in enumerate(jobs):
        begun = now(device)
        if module is None or module.model != job.model:
            module = Generate(job.model)
            module.load()
            module.to(device), module.pipe.to(device)
            factor, of.resolution = None, job.model.resolution_of(module.pipe)
        module.check(job.mitigations, requests)
        batch = Batch(module, job, folder / str(number))
        of.start += now(device) - begun
        first = batch.seconds(requests[:1])  # loads what a rule needs
        if not of.images:
            one = batch.seconds(requests[:1])
            of.images = images or int(SECONDS / (one * len(jobs)))
            of.images = max(1, min(of.images, len(requests)))
        of.start += max(0.0, first - one)
        of.image[job.label] = batch.seconds(requests[: of.images]) / of.images
        of.nfe[job.label] = batch.nfe
        if factor is None:
            factor = batch_effect(module, of.images, min(len(requests), on_one))
        of.image[job.label] *= factor
        of.peak_gib = max(of.peak_gib, batch.peak_gib, peak_gib(device))
        for rule in job.mitigations:
            rule.forget()
    return of


class Batch:
    """Makes and saves images of a job, one batch after the other.

    Attributes:
        nfe: UNet evaluations of an image in the last batch.
        peak_gib: the most memory that was held in that batch.
    """

    def __init__(self, module: Generate, job: Job, folder: Path):
        self.module, self.rules, self.folder = module, job.mitigations, folder

    def seconds(self, requests: list[Request]) -> float:
        begun = now(self.module.device)
        made = self.module.generate(requests, self.rules)
        for number, image in enumerate(made.images):
            save_image(image, self.folder / f"{number}.png")
        self.peak_gib = made.peak_memory_gib
        self.nfe = made.denoised.nfe.double().mean().item()
        return now(self.module.device) - begun


def batch_effect(module: Generate, images: int, batch_size: int) -> float:
    """Seconds of the UNet for an image in a batch of the job's size, over those in a batch of `images`.

    1 where these are the same, or the device so slow that both take as long.
    """
    if images >= batch_size:
        return 1.0
    few, _ = call_seconds(module, images)
    if few > CALL_SECONDS:
        return 1.0
    many, rows = call_seconds(module, batch_size)
    return (many / rows) / (few / images)


@torch.no_grad()
def call_seconds(module: Generate, batch_size: int) -> tuple[float, int]:
    """The quickest of some calls of the UNet for a batch, and how many images of it fit into the memory."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < 5 and sum(times) < 1):
        begun = now(module.device)
        module.within_memory(module.call_unet, batch_size)
        times.append(now(module.device) - begun)
    return min(times), min(batch_size, module.rows_at_once or batch_size)
