"""Statistics of images with bootstrap intervals: samples of a prompt are alike, so prompts are resampled."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np
import pandas as pd

from data.batches import in_batches
from infer.metrics.similarity import COPY_THRESHOLD

Statistic = Callable[[np.ndarray], np.ndarray]  # (R, N), NaN where there is no number -> (R,)
DRAWS, LEVEL = 2000, 0.95
TAILS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
CHUNK = 1 << 22  # numbers resampled at once


def quantile(values: np.ndarray, q: float) -> np.ndarray:
    function = np.nanquantile if np.isnan(values).any() else np.quantile
    return function(values, q, axis=1)


def share_above(values: np.ndarray, threshold: float) -> np.ndarray:
    """Share among those that have a number."""
    return np.nanmean(np.where(np.isnan(values), np.nan, values > threshold), axis=1)


STATISTICS: dict[str, Statistic] = {
    "mean": partial(np.nanmean, axis=1),
    "std": partial(np.nanstd, axis=1),
    "p75": partial(quantile, q=0.75),
    "p90": partial(quantile, q=0.90),
    "p95": partial(quantile, q=0.95),
    "share_above_05": partial(share_above, threshold=COPY_THRESHOLD),
    "share_above_07": partial(share_above, threshold=0.7),
}


def by_prompt(rows: pd.DataFrame, column: str) -> np.ndarray:
    """The column as prompts x samples, NaN where there is none; prompts in alphabetical order."""
    return rows.pivot(index="prompt_id", columns="sample", values=column).astype(float).to_numpy()


def resamples(prompts: int, draws: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """Prompts drawn with replacement, (prompts,) each time: the same for everything that is compared."""
    random = np.random.default_rng(seed)
    return (random.integers(0, prompts, prompts) for _ in range(draws))


def resampled(
    values: np.ndarray, statistics: Mapping[str, Statistic], draws: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """Each statistic of each resample of the prompts (P, S) with all of their samples, (draws,)."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for chunk in in_batches(draws, max(1, CHUNK // values.size)):
        drawn = values[np.stack(chunk)].reshape(len(chunk), -1)
        for name, statistic in statistics.items():
            parts[name].append(statistic(drawn))
    return {name: np.concatenate(results) for name, results in parts.items()}


def with_interval(
    values: np.ndarray, statistics: Mapping[str, Statistic], reference: np.ndarray | None = None
) -> dict[str, tuple[float, float, float]]:
    """(value, low, high) of each statistic, or of its difference to that of the reference.

    Low and high enclose the middle 95 % of the resamples; NaN if only one prompt has a number. All three are
    NaN if none has.
    """
    known = ~np.isnan(values).all(1)
    count = int(known.sum())
    if not count:
        return dict.fromkeys(statistics, (np.nan, np.nan, np.nan))

    def over(draws: Callable[[], Iterable[np.ndarray]]) -> dict[str, np.ndarray]:
        results = resampled(values[known], statistics, draws())
        if reference is None:
            return results
        of_reference = resampled(reference[known], statistics, draws())
        return {name: results[name] - of_reference[name] for name in statistics}

    estimates = over(lambda: [np.arange(count)])
    drawn = over(partial(resamples, count)) if count > 1 else {}
    return {
        name: (value.item(), *map(float, np.quantile(drawn.get(name, [np.nan]), TAILS)))
        for name, value in estimates.items()
    }


def estimate(
    values: np.ndarray, statistics: Mapping[str, Statistic], reference: np.ndarray | None = None
) -> dict[str, float]:
    """Each statistic of all images, its bootstrap 95 % interval, and its paired difference to a reference.

    Keys `<name>`, `<name>_low`, `<name>_high`, `<name>_delta`, `<name>_delta_low`, `<name>_delta_high`. The
    difference is over images that both have; each resample draws the same prompts for both.

    Args:
        values: prompts x samples, (P, S), NaN where there is no number.
        statistics: by name.
        reference: of the same prompts and samples, (P, S).
    """
    estimates = {"": with_interval(values, statistics)}
    if reference is not None:
        both = ~np.isnan(values) & ~np.isnan(reference)
        estimates["_delta"] = with_interval(
            np.where(both, values, np.nan), statistics, np.where(both, reference, np.nan)
        )
    return {
        f"{name}{suffix}{end}": number
        for suffix, by_name in estimates.items()
        for name, numbers in by_name.items()
        for end, number in zip(("", "_low", "_high"), numbers, strict=True)
    }
