"""Further attempts at an image: their seeds, and the trace of several attempts."""

from dataclasses import fields, replace

import torch

from infer.denoising.guidance import Trace
from infer.denoising.noise import sample_seed

COSTS = ("nfe", "gradient_passes")  # of a trace: all attempts count


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of a sample's further attempt, from 2 on: it follows from the sample's own."""
    return sample_seed(seed, "attempt", attempt)


def with_rows(trace: Trace, rows: list[int], other: Trace) -> Trace:
    """The trace with another run's in place of these rows; what both evaluated is added up."""
    changed = {}
    for name in (field.name for field in fields(trace)):
        ours, theirs = getattr(trace, name), getattr(other, name)
        if ours is None and theirs is None:
            continue
        none = torch.tensor(False if name == "gated" else torch.nan)
        ours = none.expand(len(trace.nfe)).clone() if ours is None else ours.clone()
        theirs = none.expand(len(rows)) if theirs is None else theirs
        ours[rows] = ours[rows] + theirs if name in COSTS else theirs
        changed[name] = ours
    return replace(trace, **changed)
