"""Statistics of images with their uncertainty. Samples of one prompt are alike, so prompts are resampled."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd

Statistic = Callable[[np.ndarray], np.ndarray]  # (R, N) with NaN where there is no number -> (R,)
DRAWS, LEVEL = 2000, 0.95
MANY = 1 << 22  # numbers drawn at once


def quantile(values: np.ndarray, q: float) -> np.ndarray:
    take = np.nanquantile if np.isnan(values).any() else np.quantile
    return take(values, q, axis=1)


def share_above(values: np.ndarray, threshold: float) -> np.ndarray:
    """Of those that have a number."""
    return np.nanmean(np.where(np.isnan(values), np.nan, values > threshold), axis=1)


STATISTICS: dict[str, Statistic] = {
    "mean": partial(np.nanmean, axis=1),
    "std": partial(np.nanstd, axis=1),
    "p75": partial(quantile, q=0.75),
    "p90": partial(quantile, q=0.90),
    "p95": partial(quantile, q=0.95),
    "share_above_05": partial(share_above, threshold=0.5),
    "share_above_07": partial(share_above, threshold=0.7),
}


def by_prompt(rows: pd.DataFrame, column: str) -> np.ndarray:
    """The column as prompts x samples, NaN where there is none; prompts in alphabetical order."""
    return rows.pivot(index="prompt_id", columns="sample", values=column).astype(float).to_numpy()


def resamples(prompts: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Prompts drawn with replacement, (draws, prompts): the same for all that is to be compared."""
    return np.random.default_rng(seed).integers(0, prompts, (draws, prompts))


def resampled(
    values: np.ndarray, statistics: Mapping[str, Statistic], draws: np.ndarray
) -> dict[str, np.ndarray]:
    """Each statistic of each resample of the prompts (P, S) with all of their samples, (draws,)."""
    at_once = max(1, MANY // values.size)
    found: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for start in range(0, len(draws), at_once):
        some = draws[start : start + at_once]
        drawn = values[some].reshape(len(some), -1)
        for name, statistic in statistics.items():
            found[name].append(statistic(drawn))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def with_interval(
    ours: np.ndarray, statistics: Mapping[str, Statistic], theirs: np.ndarray | None = None
) -> dict[str, tuple[float, float, float]]:
    """(value, low, high) of each statistic, or of its difference: the middle 95 % of the resamples.

    NaN where no prompt has a number; no interval, low and high NaN, where only one has.
    """
    known = ~np.isnan(ours).all(1)
    if not known.any():
        return dict.fromkeys(statistics, (np.nan, np.nan, np.nan))

    def of(draws: np.ndarray) -> dict[str, np.ndarray]:
        found = resampled(ours[known], statistics, draws)
        if theirs is None:
            return found
        others = resampled(theirs[known], statistics, draws)
        return {name: found[name] - others[name] for name in statistics}

    count = int(known.sum())
    values = {name: found.item() for name, found in of(np.arange(count)[None]).items()}
    if count == 1:
        return {name: (value, np.nan, np.nan) for name, value in values.items()}
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    ends = {name: np.quantile(found, tails) for name, found in of(resamples(count)).items()}
    return {name: (value, *map(float, ends[name])) for name, value in values.items()}


def estimate(
    values: np.ndarray, statistics: Mapping[str, Statistic], reference: np.ndarray | None = None
) -> dict[str, float]:
    """Each statistic of all images, its bootstrap 95 % interval, and its paired difference to a reference.

    Keys `<name>`, `<name>_low`, `<name>_high`, `<name>_delta`, `<name>_delta_low`, `<name>_delta_high`. The
    difference is over the images that both have, with the same prompts drawn for both: what is common to a
    prompt under all mitigations drops out of it.

    Args:
        values: prompts x samples, (P, S), NaN where there is no number.
        statistics: by name.
        reference: of the same prompts and samples, (P, S).
    """
    found = {"": with_interval(values, statistics)}
    if reference is not None:
        gone = np.isnan(values) | np.isnan(reference)
        found["_delta"] = with_interval(
            np.where(gone, np.nan, values), statistics, np.where(gone, np.nan, reference)
        )
    return {
        f"{name}{suffix}{end}": number
        for suffix, estimates in found.items()
        for name, numbers in estimates.items()
        for end, number in zip(("", "_low", "_high"), numbers, strict=True)
    }
