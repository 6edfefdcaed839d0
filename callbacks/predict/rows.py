"""The rows of `samples.parquet` and `traces.parquet` for one image."""

import math
from typing import Any

import pandas as pd

from infer.predict.module import Generated

TRACED = ("unconditional_rms", "conditional_rms", "difference_rms", "guidance_scale")


def sample_row(
    batch: Generated, number: int, mitigation: str, guidance_scale: float, image: str
) -> dict[str, Any]:
    """The row of `samples.parquet` of one image of a batch: what happened to it.

    Args:
        batch: finished.
        number: of the image in it.
        mitigation: label.
        guidance_scale: of the run.
        image: the file, relative to the run folder.
    """
    request, denoised = batch.requests[number], batch.denoised
    transitions, failed_at = denoised.transition_timestep, denoised.failed_at[number].item()
    row = {
        "prompt_id": request.prompt_id,
        "sample": request.sample,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "alternative_prompt": batch.alternatives[number],
        "seed": request.seed,
        "mitigation": mitigation,
        "guidance_scale": guidance_scale,
        "watched": batch.watched_space,
        "transition_timestep": math.nan if transitions is None else transitions[number].item(),
        "gated": transitions is not None and denoised.gated[number].item(),
        "nfe": denoised.nfe[number].item(),
        "gradient_passes": denoised.gradient_passes[number].item(),
        "seconds": batch.seconds_per_image,
        "peak_memory_gib": batch.peak_memory_gib,
        "image": image,
        "failed_step": float(failed_at) if failed_at >= 0 else None,  # one type in all parts
    }
    if guarded := batch.guarded:
        row |= {"attempts": guarded.attempts[number].item(), "refused": guarded.refused[number].item()}
    return row


def trace_rows(batch: Generated, number: int) -> pd.DataFrame:
    """The curves of the image, a row for each step that was taken."""
    request, denoised = batch.requests[number], batch.denoised
    taken = denoised.timesteps[number].isfinite()
    columns = {"timestep": denoised.timesteps} | {name: getattr(denoised, name) for name in TRACED}
    curves = {name: column[number][taken].numpy() for name, column in columns.items()}
    steps = range(int(taken.sum()))
    return pd.DataFrame({"prompt_id": request.prompt_id, "sample": request.sample, "step": steps, **curves})
