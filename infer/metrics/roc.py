"""How well scores tell memorized prompts from ordinary ones: AUC, ROC curve, thresholds."""

import math

import numpy as np
import pandas as pd

from infer.metrics.bootstrap import DRAWS, TAILS


def auc(memorized: np.ndarray, ordinary: np.ndarray) -> float:
    """Share of pairs in which the memorized prompt has the higher score; a tie counts as half.

    Mann-Whitney's U from midranks, over the number of pairs.
    """
    ranks = pd.Series(np.concatenate([memorized, ordinary])).rank().to_numpy()[: len(memorized)]
    return float((ranks.mean() - (len(memorized) + 1) / 2) / len(ordinary))


def auc_interval(memorized: np.ndarray, ordinary: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the AUC, the prompts of each group being resampled.

    NaN where resampling says nothing: one prompt in a group, or groups that do not overlap.
    """
    apart = memorized.min() > ordinary.max() or memorized.max() < ordinary.min()
    if min(len(memorized), len(ordinary)) < 2 or apart:
        return math.nan, math.nan
    random, ordered = np.random.default_rng(seed), np.sort(ordinary)
    below, upto = ordered.searchsorted(memorized, "left"), ordered.searchsorted(memorized, "right")
    draws = []
    for _ in range(DRAWS):
        counts = np.bincount(random.integers(0, len(ordered), len(ordered)), minlength=len(ordered))
        beaten = np.append(0, counts.cumsum())
        wins = (beaten[below] + beaten[upto]) / 2
        draws.append(wins[random.integers(0, len(wins), len(wins))].mean() / len(ordered))
    low, high = np.quantile(draws, TAILS)
    return float(low), float(high)


def roc(memorized: np.ndarray, ordinary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every threshold, from none flagged to all."""
    import torch
    from torchmetrics.functional.classification import binary_roc

    scores = np.concatenate([memorized, ordinary])
    # torchmetrics applies a sigmoid to scores outside of [0, 1], which merges large ones: ranks are safe
    ranks = torch.from_numpy(pd.Series(scores).rank(method="dense").to_numpy() / len(scores))
    labels = torch.tensor([1] * len(memorized) + [0] * len(ordinary))
    false, true, _ = binary_roc(ranks, labels)
    return false.numpy(), true.numpy()


def allowed_above(count: int, rate: float) -> int:
    """How many of so many ordinary prompts may be above the threshold; 0: too few to show the rate."""
    return math.floor(count * rate + 1e-9)


def threshold(ordinary: np.ndarray, rate: float) -> float | None:
    """The score that at most this share of the ordinary prompts exceeds; None if too few can show it."""
    allowed = allowed_above(len(ordinary), rate)
    return float(np.sort(ordinary)[len(ordinary) - allowed - 1]) if allowed else None
