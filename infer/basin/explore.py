"""Make what `infer.basin.options` looks at: the watched curves, and images for guidance on [t, 0]."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL.Image import Image
from tqdm import tqdm

from data.batches import in_batches
from data.captioned import load_captioned
from data.prompts import Prompt, load_prompts, same
from infer.basin.options import Basin, Findings, place
from infer.denoising.curves import Rules, Watch, joined
from infer.denoising.hooks import GuidanceRule, Request
from infer.denoising.noise import sample_seed
from infer.denoising.sampling import make_images
from infer.metrics.similarity import embed_all, pixel_descriptor
from infer.metrics.sscd import sscd_descriptor


class Job(NamedTuple):
    """Images of the requests, with a guidance scale and at most one rule."""

    requests: list[Request]
    scale: float
    rule: GuidanceRule | None = None


@dataclass
class Made:
    """What came of a job; curves and firing timesteps where it was watched."""

    images: dict[str, Image]
    failed: list[str]
    curves: dict[str, np.ndarray]
    fired: dict[str, np.ndarray]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def choose(basin: Basin, known: Sequence[str]) -> tuple[list[Prompt], Prompt, list[Prompt], int]:
    """The memorized prompts with a training image, the traced one, the others, and how many were left out.

    ValueError where one of them would be none.
    """
    asked = load_prompts(basin.prompts)
    own = [prompt for prompt in asked if prompt.id in known]
    if not own:
        raise ValueError(f"no prompt of {basin.prompts!r} has the id of an image in {basin.training}")
    traced = next((prompt for prompt in own if prompt.id == (basin.prompt_id or own[0].id)), None)
    if traced is None:
        raise ValueError(
            f"no memorized prompt {basin.prompt_id!r} with a training image; one is {own[0].id!r}"
        )
    memorized = spread(own, basin.limit)
    memorized += [] if traced in memorized else [traced]
    if basin.others is None:
        return memorized, traced, [], 0
    captions = {same(prompt.text) for prompt in asked}
    everything = load_prompts(basin.others)
    others = [prompt for prompt in everything if same(prompt.text) not in captions]
    if not others:
        raise ValueError(
            f"all prompts of {basin.others!r} are memorized ones: there are no others among them"
        )
    return memorized, traced, spread(others, len(memorized)), len(everything) - len(others)


class Maker:
    """A loaded model that does jobs, with a bar over all their denoising steps."""

    def __init__(self, basin: Basin, rules: Rules):
        self.basin, self.device = basin, torch.device(basin.device)
        self.pipe = basin.model.load(self.device)
        self.side = basin.model.resolution_of(self.pipe)
        self.timesteps = self.prepare(basin.model.guidance_scale, *rules.values())

    def prepare(self, scale: float, *rules: GuidanceRule) -> list[float]:
        """The schedule's timesteps; ValueError for a rule that cannot take effect."""
        return self.basin.model.prepare(self.pipe, scale, *rules)

    def __call__(self, jobs: dict[Any, Job]) -> dict[Any, Made]:
        batches = sum(math.ceil(len(job.requests) / self.basin.batch_size) for job in jobs.values())
        with tqdm(desc="denoise", total=batches * len(self.timesteps), unit="step") as bar:
            return {key: self.do(job, bar) for key, job in jobs.items()}

    def do(self, job: Job, bar: tqdm) -> Made:
        model, images, failed, parts = self.basin.model, {}, [], []
        for requests in in_batches(job.requests, self.basin.batch_size):
            bar.total -= len(self.timesteps)  # the loop adds its own steps
            made, denoised = make_images(
                self.pipe, self.device, requests, self.side, job.scale, model.num_inference_steps,
                model.negative_prompt, [job.rule] if job.rule else [], bar,
            )  # fmt: skip
            ids = [request.prompt_id for request in requests]
            images |= dict(zip(ids, made, strict=True))
            failed += [key for key, step in zip(ids, denoised.failed_at.tolist(), strict=True) if step >= 0]
            if isinstance(job.rule, Watch):
                sizes = {"unconditional": denoised.unconditional_rms, "conditional": denoised.conditional_rms}
                curves = {name: values.numpy() for name, values in sizes.items()} | job.rule.curves()
                parts.append((curves, job.rule.fired()))
        return Made(images, failed, *map(joined, zip(*parts, strict=True) if parts else ([], [])))


def explore(basin: Basin, at: Callable[[float, float], GuidanceRule], dynamic: Rules) -> Findings:
    """Make what the pictures show; ValueError, before anything is made, where that is impossible.

    Args:
        basin: what to look at.
        at: (timestep, scale before it) -> the rule that gives full guidance from there on.
        dynamic: the rules whose firing is told.
    """
    samples = load_captioned(*basin.training)
    prompts, first, strangers, left_out = choose(basin, samples.position)
    given = basin.sscd, basin.sscd_protocol, basin.sscd_sha256, basin.device
    describe = sscd_descriptor(*given) if basin.sscd else pixel_descriptor
    maker, scale = Maker(basin, dynamic), {"none": 0.0, "opposite": basin.opposite}
    memorized, others = (
        [Request(p.id, 0, p.text, sample_seed(basin.seed, p.id, 0), p.negative) for p in group]
        for group in (prompts, strangers)
    )
    traced = memorized[prompts.index(first)]
    points = {place(point, maker.timesteps) for point in basin.points}
    jobs = {("memorized", how): Job(memorized, scale[how], Watch(dynamic)) for how in scale}
    if others:
        jobs |= {("others", how): Job(others, scale[how], Watch(dynamic)) for how in scale}
    jobs["none", math.inf] = Job(memorized, basin.model.guidance_scale)
    for point in sorted(filter(math.isfinite, points), reverse=True):
        jobs["none", point] = Job(memorized, basin.model.guidance_scale, at(point, 0.0))
        jobs["opposite", point] = Job([traced], basin.model.guidance_scale, at(point, basin.opposite))
    for job in jobs.values():
        maker.prepare(job.scale, *filter(None, [job.rule]))
    made = maker(jobs)

    shown = {key: value for key, value in made.items() if key[0] in scale}
    shown |= {(how, -math.inf): made["memorized", how] for how in scale}  # the scale is held to the end
    shown["opposite", math.inf] = made["none", math.inf]
    training = {r.prompt_id: samples[samples.position[r.prompt_id]].rgb(maker.side) for r in memorized}
    embedded = dict(zip(training, embed_all(training.values(), describe), strict=True))

    def similarity(result: Made) -> pd.Series:
        found = zip(result.images, embed_all(result.images.values(), describe), strict=True)
        likeness = pd.Series({key: float(vector @ embedded[key]) for key, vector in found})
        return likeness.where(~likeness.index.isin(result.failed))

    watched = {key: value for key, value in made.items() if value.curves}
    return Findings(
        basin, memorized, traced, others, left_out, training, maker.timesteps,
        images={key: value.images for key, value in shown.items()},
        similarity={key: similarity(value) for key, value in shown.items()},
        curves={key: value.curves for key, value in watched.items()},
        fired={key: value.fired for key, value in watched.items()},
    )  # fmt: skip
