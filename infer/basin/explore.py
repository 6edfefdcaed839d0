"""Generate what `python -m infer basin` shows: watched curves, and images for full guidance on [t, 0]."""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from data.batches import in_batches, spread
from data.captioned import CaptionedImages
from data.prompts import Prompt, load_ordinary, load_prompts
from infer.basin.options import Basin
from infer.basin.summary import Findings, clamp_point
from infer.denoising.curves import Rules, Watch, joined
from infer.denoising.hooks import GuidanceRule
from infer.denoising.requests import Request, requests_for
from infer.denoising.sampling import make_images
from infer.metrics.similarity import Descriptor, embed_all
from infer.metrics.sscd import chosen_descriptor

Transition = Callable[[float, float], GuidanceRule]  # (timestep, scale before it) -> full guidance from there


class Job(NamedTuple):
    """Images of the requests with a guidance scale and at most one rule."""

    requests: list[Request]
    guidance_scale: float
    rule: GuidanceRule | None = None

    @property
    def rules(self) -> list[GuidanceRule]:
        return [self.rule] if self.rule else []


class Generated(NamedTuple):
    """The images of a job, which failed, and curves and firing timesteps if its rule is a `Watch`."""

    images: dict[Request, Image]
    failed: list[Request]
    curves: dict[str, np.ndarray]
    fired: dict[str, np.ndarray]


def choose(options: Basin, known: Collection[str]) -> tuple[dict[str, list[Prompt]], Prompt, int]:
    """Prompts by group, the traced one, and how many others were left out as memorized.

    ValueError without a memorized prompt whose id is in `known`, the ids of the training images, or without
    others where they are requested.
    """
    prompts = load_prompts(options.prompts)
    own = [prompt for prompt in prompts if prompt.id in known]
    if not own:
        raise ValueError(f"no prompt of {options.prompts!r} has the id of an image in {options.training}")
    traced = next((prompt for prompt in own if prompt.id == (options.prompt_id or own[0].id)), None)
    if traced is None:
        raise ValueError(
            f"no memorized prompt {options.prompt_id!r} with a training image; one is {own[0].id!r}"
        )
    memorized = spread(own, options.limit)
    groups, left_out = {"memorized": memorized + [traced] * (traced not in memorized)}, 0
    if options.others is not None:
        others, left_out = load_ordinary(options.others, prompts)
        groups["others"] = spread(others, len(groups["memorized"]))
    return groups, traced, left_out


def jobs_for(
    options: Basin, requests: dict[str, list[Request]], traced: list[Request], timesteps: list[float],
    transition: Transition, dynamic: Rules,
) -> dict[tuple[str, str | float], Job]:  # fmt: skip
    """Curves by (group, guidance before), and images by (guidance before, point)."""
    full, scales = options.model.guidance_scale, {"none": 0.0, "opposite": options.opposite}
    jobs: dict[tuple[str, str | float], Job] = {
        (group, before): Job(requests[group], scale, Watch(dynamic))
        for group in requests
        for before, scale in scales.items()
    }
    jobs["none", math.inf] = Job(requests["memorized"], full)
    points = {clamp_point(point, timesteps) for point in options.points}
    for point in sorted(filter(math.isfinite, points), reverse=True):
        jobs["none", point] = Job(requests["memorized"], full, transition(point, 0.0))
        jobs["opposite", point] = Job(traced, full, transition(point, options.opposite))
    return jobs


def generate(options: Basin, pipe: Any, job: Job, bar: tqdm) -> Generated:
    """Do one job, batch by batch; `bar` counts the denoising steps."""
    model, images, failed, curves, fired = options.model, {}, [], [], []
    device, resolution = torch.device(options.device), model.resolution_of(pipe)
    for batch in in_batches(job.requests, options.batch_size):
        bar.total -= len(pipe.scheduler.timesteps)  # the loop adds its own steps
        batch_images, denoised = make_images(
            pipe, device, batch, resolution, job.guidance_scale, model.num_inference_steps,
            model.negative_prompt, job.rules, bar,
        )  # fmt: skip
        images |= zip(batch, batch_images, strict=True)
        failed += [r for r, step in zip(batch, denoised.failed_at.tolist(), strict=True) if step >= 0]
        if isinstance(job.rule, Watch):
            sizes = {"unconditional": denoised.unconditional_rms, "conditional": denoised.conditional_rms}
            curves.append({name: rms.numpy() for name, rms in sizes.items()} | job.rule.curves())
            fired.append(job.rule.fired())
    return Generated(images, failed, joined(curves), joined(fired))


def explore(options: Basin, samples: CaptionedImages, transition: Transition, dynamic: Rules) -> Findings:
    """Generate and measure everything that the figures show.

    Args:
        options: which prompts and points.
        samples: the training images.
        transition: makes the rule that gives full guidance from a timestep on.
        dynamic: rules whose firing timesteps are recorded, by watched space.

    Raises:
        ValueError, FileNotFoundError: before anything is generated, for what cannot be.
    """
    prompts, first, left_out = choose(options, samples.position)
    sscd = options.sscd, options.sscd_protocol, options.sscd_sha256, options.device
    descriptor = chosen_descriptor(*sscd)
    pipe = options.model.load(torch.device(options.device))
    timesteps = options.model.prepare(pipe, options.model.guidance_scale, *dynamic.values())
    requests = {
        group: requests_for(chosen, options.samples_per_prompt, options.seed)
        for group, chosen in prompts.items()
    }
    traced = [request for request in requests["memorized"] if request.prompt_id == first.id]
    jobs = jobs_for(options, requests, traced[:1], timesteps, transition, dynamic)
    for job in jobs.values():
        options.model.prepare(pipe, job.guidance_scale, *job.rules)

    resolution = options.model.resolution_of(pipe)
    training = {p.id: samples[samples.position[p.id]].rgb(resolution) for p in prompts["memorized"]}
    embedded = dict(zip(training, embed_all(training.values(), descriptor), strict=True))
    batches = sum(math.ceil(len(job.requests) / options.batch_size) for job in jobs.values())
    with tqdm(desc="denoise", total=batches * len(timesteps), unit="step") as bar:
        results = {key: generate(options, pipe, job, bar) for key, job in jobs.items()}

    curves = {key: result.curves for key, result in results.items() if result.curves}
    fired = {key: results[key].fired for key in curves}
    for before in ("none", "opposite"):
        results[before, -math.inf] = results["memorized", before]  # the scale is held to the end
    results["opposite", math.inf] = results["none", math.inf]
    generated = {key: result for key, result in results.items() if key not in curves}
    return Findings(
        options, requests, traced[0], left_out, training, timesteps,
        images={key: result.images for key, result in generated.items()},
        similarity={key: similarity(result, embedded, descriptor) for key, result in generated.items()},
        failed={key: result.failed for key, result in generated.items()}, curves=curves, fired=fired,
    )  # fmt: skip


def similarity(
    result: Generated, training: dict[str, Tensor], descriptor: Descriptor
) -> dict[Request, float]:
    """Of each image to the training image of its prompt; NaN for failed images and where it is undefined."""
    cosines = zip(result.images, embed_all(result.images.values(), descriptor), strict=True)
    return {
        request: math.nan if request in result.failed else float(embedding @ training[request.prompt_id])
        for request, embedding in cosines
    }
