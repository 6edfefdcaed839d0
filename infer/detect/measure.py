"""Score prompts by published detectors, in a run with guidance and one without."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from data.prompts import Prompt
from infer.denoising.curves import Watch
from infer.denoising.requests import Request, requests_for
from infer.denoising.schedulers import first_informative_step, noise_levels
from infer.detect.attention import CrossAttention, cross_attentions, ends_of_text
from infer.detect.detectors import DETECTORS, all_steps, fall, first_step
from infer.detect.options import Detection
from infer.detect.summary import Detected


def measure(options: Detection) -> Detected:
    """Score the prompts; ValueError where that is impossible."""
    groups, left_out = options.groups()
    labelled = [(prompt, label) for label, prompts in groups.items() for prompt in prompts]
    requests = requests_for((prompt for prompt, _ in labelled), options.samples_per_prompt, options.seed)
    pipe = options.model.load(torch.device(options.device))
    times = [time.perf_counter()]
    guided = guided_scores(options, pipe, requests)
    times.append(time.perf_counter())
    unguided = unguided_scores(options, pipe, requests)
    times.append(time.perf_counter())
    per_prompt = (np.diff(times) / len(labelled)).tolist()
    seconds = dict(zip(("guided run", "unguided run"), per_prompt, strict=True))
    return Detected(options, by_prompt(labelled, guided.join(unguided)), left_out, seconds)


def guided_scores(options: Detection, pipe: Any, requests: Sequence[Request]) -> pd.DataFrame:
    """A row per request: detectors that read the run with guidance, and whether it failed."""
    scale, parts = options.model.guidance_scale, []
    steps = len(options.model.prepare(pipe, scale))
    first = first_informative_step(noise_levels(pipe.scheduler))
    attention = CrossAttention(steps, options.attention_layer) if cross_attentions(pipe.unet) else None
    rules = [attention] if attention else [Watch()]
    for batch, denoised in options.denoised_batches(pipe, requests, scale, rules, "guided"):
        curves = denoised.difference_rms.numpy()
        scores = {"first_step": first_step(curves[:, first:]), "all_steps": all_steps(curves)}
        if attention:
            scores |= attention.scores(ends_of_text(pipe, [request.prompt for request in batch]))
        parts.append(pd.DataFrame(scores | {"failed_guided": denoised.failed_at >= 0}))
    return pd.concat(parts, ignore_index=True)


def unguided_scores(options: Detection, pipe: Any, requests: Sequence[Request]) -> pd.DataFrame:
    """A row per request: the fall in the run without guidance, and whether it failed."""
    timesteps, parts = options.model.prepare(pipe, 0.0), []
    for _, denoised in options.denoised_batches(pipe, requests, 0.0, [Watch()], "no guidance"):
        depth, fired = fall(denoised.difference_rms.numpy(), timesteps)
        scores = {"fall": depth, "fired_timestep": fired, "failed_unguided": denoised.failed_at >= 0}
        parts.append(pd.DataFrame(scores))
    return pd.concat(parts, ignore_index=True)


def by_prompt(labelled: Sequence[tuple[Prompt, bool | None]], samples: pd.DataFrame) -> pd.DataFrame:
    """A row per prompt: means over its noises, without those whose latents or scores are not finite."""
    names = [name for name in DETECTORS if name in samples]
    failed = samples["failed_guided"] | samples["failed_unguided"]
    valid = np.isfinite(samples[names]).all(axis=1) & ~failed
    prompt = np.repeat(np.arange(len(labelled)), len(samples) // len(labelled))
    scores = samples.where(valid).groupby(prompt)[[*names, "fired_timestep"]].mean()
    rows = pd.DataFrame({
        "prompt_id": [prompt.id for prompt, _ in labelled],
        "prompt": [prompt.text for prompt, _ in labelled],
        "memorized": pd.array([label for _, label in labelled], "boolean"),
        "samples": valid.groupby(prompt).sum(),
    })  # fmt: skip
    columns = ["first_step", "all_steps", "fall", "fired_timestep", "attention_d", "attention_e"]
    return rows.join(scores.reindex(columns=columns))
