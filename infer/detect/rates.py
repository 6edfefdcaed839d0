"""The share of memorized prompts that a detector finds at a rate of false alarms, and its interval."""

import math
from collections.abc import Sequence

import numpy as np

from infer.metrics.bootstrap import DRAWS, TAILS
from infer.metrics.roc import allowed_above, threshold


def true_positive_rate(memorized: np.ndarray, ordinary: np.ndarray, rate: float) -> float | None:
    """Share of the memorized prompts above the threshold of the rate; None for too few ordinary prompts."""
    cut = threshold(ordinary, rate)
    return None if cut is None else float((memorized > cut).mean())


def rate_intervals(
    memorized: np.ndarray, ordinary: np.ndarray, rates: Sequence[float], seed: int = 0
) -> list[tuple[float, float]]:
    """Bootstrap 95 % intervals of the true positive rates; the prompts of each group are resampled.

    The threshold is that of each resample: it is uncertain, too. NaN where resampling says nothing: one
    prompt in a group, or too few ordinary ones for the rate.
    """
    allowed = np.array([allowed_above(len(ordinary), rate) for rate in rates])
    if min(len(memorized), len(ordinary)) < 2:
        return [(math.nan, math.nan)] * len(rates)
    random, ordered = np.random.default_rng(seed), np.sort(ordinary)
    shares = np.empty((DRAWS, len(rates)))
    for draw in shares:
        drawn = np.sort(random.integers(0, len(ordered), len(ordered)))
        cuts = ordered[drawn[len(ordered) - allowed.clip(min=1) - 1]]
        found = memorized[random.integers(0, len(memorized), len(memorized))]
        draw[:] = (found[:, None] > cuts).mean(0)
    ends = np.where(allowed > 0, np.quantile(shares, TAILS, axis=0), math.nan)
    return [(float(low), float(high)) for low, high in ends.T]
