"""Detectors of memorized prompts, from the curves of a run, and how well scores tell two groups apart."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from infer.metrics.bootstrap import DRAWS, LEVEL


def first_step(curves: np.ndarray) -> np.ndarray:
    """Wen et al. (ICLR 2024, arXiv:2407.21720) at one step: d_T, (N,); needs the first step only.

    d_t = RMS(eps(x_t, prompt) - eps(x_t, empty prompt)), the L2 norm over a constant; the rows of `curves`,
    (N, steps), from the run with guidance. A prompt's own negative prompt stands in for the empty one.
    """
    return np.asarray(curves, float)[:, 0]


def all_steps(curves: np.ndarray) -> np.ndarray:
    """Wen et al. (ICLR 2024, arXiv:2407.21720): mean of d_t over the run with guidance, (N,)."""
    return np.asarray(curves, float).mean(1)


def fall(curves: np.ndarray, timesteps: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """How far d_t falls to its first local minimum, and the timestep at which that shows; each (N,).

    What the dynamic transition of Jain et al. (CVPR 2025) watches, in the run without guidance: it fires at
    the first step i with d[i-2] > d[i-1] < d[i]. The fall is (h - d[i-1]) / h, h being the highest d before
    the minimum. 0, and NaN for the timestep, where there is none. A timestep that comes twice counts once.

    Args:
        curves: d_t, (N, steps).
        timesteps: of the steps.
    """
    t = np.asarray(timesteps, float)
    fresh = np.append(True, t[1:] != t[:-1])
    d, t = np.asarray(curves, float)[:, fresh], t[fresh]
    passed = (d[:, :-2] > d[:, 1:-1]) & (d[:, 2:] > d[:, 1:-1])
    found, before, rows = passed.any(1), passed.argmax(1), np.arange(len(d))
    highest = np.maximum.accumulate(d, 1)[rows, before]
    depth = 1 - d[rows, before + 1] / np.where(found, highest, 1)
    return np.where(found, depth, 0.0), np.where(found, t[before + 2], np.nan)


def auc(memorized: np.ndarray, ordinary: np.ndarray) -> float:
    """The share of pairs in which the memorized prompt has the higher score; a tie is half of one.

    Mann-Whitney's U from midranks, over the number of pairs.
    """
    ranks = pd.Series(np.concatenate([memorized, ordinary])).rank().to_numpy()[: len(memorized)]
    return float((ranks.mean() - (len(memorized) + 1) / 2) / len(ordinary))


def auc_interval(memorized: np.ndarray, ordinary: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the AUC: the prompts of each group are drawn again with replacement.

    NaN where that says nothing: of a group with one prompt, or of groups that do not overlap.
    """
    apart = memorized.min() > ordinary.max() or memorized.max() < ordinary.min()
    if min(len(memorized), len(ordinary)) < 2 or apart:
        return math.nan, math.nan
    random, ordered = np.random.default_rng(seed), np.sort(ordinary)
    below, upto = (ordered.searchsorted(memorized, side) for side in ("left", "right"))
    drawn = []
    for _ in range(DRAWS):
        again = np.bincount(random.integers(0, len(ordered), len(ordered)), minlength=len(ordered))
        beaten = np.append(0, again.cumsum())
        won = (beaten[below] + beaten[upto]) / 2
        drawn.append(won[random.integers(0, len(won), len(won))].mean() / len(ordered))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def threshold(ordinary: np.ndarray, rate: float) -> float | None:
    """The score above which at most this share of the ordinary prompts lies; None: too few can show it."""
    allowed = math.floor(len(ordinary) * rate + 1e-9)
    return float(np.sort(ordinary)[len(ordinary) - allowed - 1]) if allowed else None
