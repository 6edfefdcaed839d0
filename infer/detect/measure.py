"""Score prompts by published detectors: in a run with guidance, one without, and from the noise alone."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data.prompts import Prompt
from infer.denoising.curves import Watch
from infer.denoising.requests import Request, requests_for
from infer.denoising.schedulers import first_informative_step, noise_levels
from infer.detect.attention import CrossAttention, cross_attentions, ends_of_text
from infer.detect.detectors import DETECTORS, GRADIENT, GUIDED, NOISE, UNGUIDED, all_steps, fall, first_step
from infer.detect.early_steps import EarlyChange
from infer.detect.noise import Noise, of_noise
from infer.detect.noise_scores import agreement, alignment, anisotropy, decoupled_hessian, mirrored, sharpness
from infer.detect.options import Detection
from infer.detect.summary import Detected

LOW_NOISE = -3  # the step of the alignment, as in the authors' code


def measure(options: Detection) -> Detected:
    """Score the prompts; ValueError where that is impossible."""
    groups, left_out = options.groups()
    labelled = [(prompt, label) for label, prompts in groups.items() for prompt in prompts]
    requests = requests_for((prompt for prompt, _ in labelled), options.samples_per_prompt, options.seed)
    pipe = options.model.load(torch.device(options.device))
    steps = len(options.model.prepare(pipe, options.model.guidance_scale))
    parts, seconds = [], {}
    for run, scores in RUNS.items():
        if run in options.runs:
            start = time.perf_counter()
            parts.append(scores(options, pipe, requests))
            seconds[run] = (time.perf_counter() - start) / len(labelled)
    rows = by_prompt(labelled, pd.concat(parts, axis=1), options.detectors)
    return Detected(options, rows, left_out, seconds, steps)


def guided_scores(options: Detection, pipe: Any, requests: Sequence[Request]) -> pd.DataFrame:
    """A row per request: detectors that read the run with guidance, and whether it failed."""
    scale, parts = options.model.guidance_scale, []
    steps = len(options.model.prepare(pipe, scale))
    first = first_informative_step(noise_levels(pipe.scheduler))
    wanted = {"attention_d", "attention_e"} & set(options.detectors) and cross_attentions(pipe.unet)
    attention = CrossAttention(steps, options.attention_layer) if wanted else None
    rules = [early := EarlyChange(), *([attention] if attention else [])]
    for batch, denoised in options.denoised_batches(pipe, requests, scale, rules, "guided"):
        curves = denoised.difference_rms.numpy()
        scores = {"first_step": first_step(curves[:, first:]), "all_steps": all_steps(curves)}
        scores |= early.scores()
        if attention:
            scores |= attention.scores(ends_of_text(pipe, [request.prompt for request in batch]))
        parts.append(pd.DataFrame(scores | {"failed_guided": denoised.failed_at.numpy() >= 0}))
    return pd.concat(parts, ignore_index=True)


def unguided_scores(options: Detection, pipe: Any, requests: Sequence[Request]) -> pd.DataFrame:
    """A row per request: the fall in the run without guidance, and whether it failed."""
    timesteps, parts = options.model.prepare(pipe, 0.0), []
    for _, denoised in options.denoised_batches(pipe, requests, 0.0, [Watch()], "no guidance"):
        depth, fired = fall(denoised.difference_rms.numpy(), timesteps)
        scores = {"fall": depth, "fired_timestep": fired, "failed_unguided": denoised.failed_at.numpy() >= 0}
        parts.append(pd.DataFrame(scores))
    return pd.concat(parts, ignore_index=True)


def noise_only(options: Detection, pipe: Any, requests: Sequence[Request]) -> pd.DataFrame:
    """A row per request: the detectors that read predictions on pure noise, of those that are wanted."""

    def scores(noise: Noise) -> dict[str, Tensor]:
        found, wanted = {}, set(options.detectors)
        if wanted & {"alignment", "anisotropy"}:
            found["alignment"] = alignment(*noise.predict(len(noise.levels) + LOW_NOISE, noise.x))
        if wanted & {"anisotropy", "agreement"}:
            noises = mirrored(noise.x) if "agreement" in wanted else [noise.x]
            pairs = [noise.predict(noise.first, x) for x in noises]
        if "anisotropy" in wanted:
            found["anisotropy"] = anisotropy(found["alignment"], *pairs[0])
        if "agreement" in wanted:
            found["agreement"] = agreement([c - u for u, c in pairs])
        return found

    return of_noise(options, pipe, requests, scores, "noise")


def gradient_scores(options: Detection, pipe: Any, requests: Sequence[Request]) -> pd.DataFrame:
    """A row per request: the detectors that differentiate the UNet, of those that are wanted."""

    def scores(noise: Noise) -> dict[str, Tensor]:
        predict, (_, sigma) = partial(noise.predict, noise.first), noise.levels[noise.first]
        formulas = {
            "sharpness": lambda: sharpness(predict, noise.x, sigma),
            "hessian": lambda: decoupled_hessian(predict, noise.x),
        }
        return {name: formula() for name, formula in formulas.items() if name in options.detectors}

    return of_noise(options, pipe, requests, scores, "gradients")


RUNS = {
    GUIDED: guided_scores, UNGUIDED: unguided_scores, NOISE: noise_only, GRADIENT: gradient_scores,
}  # fmt: skip


def by_prompt(
    labelled: Sequence[tuple[Prompt, bool | None]], samples: pd.DataFrame, names: Sequence[str] = [*DETECTORS]
) -> pd.DataFrame:
    """A row per prompt: means over its noises, without those whose latents or scores are not finite.

    A detector without any score, such as one of attention where a UNet has none, is left empty.
    """
    scored = [name for name in names if name in samples and samples[name].notna().any()]
    failed = samples.filter(like="failed_").any(axis=1)
    valid = np.isfinite(samples[scored]).all(axis=1) & ~failed
    prompt = np.repeat(np.arange(len(labelled)), len(samples) // len(labelled))
    fired = samples.columns.intersection(["fired_timestep"])
    scores = samples.where(valid).groupby(prompt)[[*scored, *fired]].mean()
    rows = pd.DataFrame({
        "prompt_id": [prompt.id for prompt, _ in labelled],
        "prompt": [prompt.text for prompt, _ in labelled],
        "memorized": pd.array([label for _, label in labelled], "boolean"),
        "samples": valid.groupby(prompt).sum(),
    })  # fmt: skip
    return rows.join(scores.reindex(columns=[*names, *fired]))
