"""Intervals and paired differences: against loops, numpy, and worlds whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from infer.metrics import bootstrap as statistics
from infer.metrics.bootstrap import STATISTICS, by_prompt, estimate, resamples

MEAN = {"mean": STATISTICS["mean"]}


def world(random: np.random.Generator, prompts: int, samples: int, within: float = 0.0) -> np.ndarray:
    """Samples around their prompt's own value."""
    return random.normal(size=(prompts, 1)) + within * random.normal(size=(prompts, samples))


def test_the_statistics_are_those_of_all_images() -> None:
    values = np.random.default_rng(0).random((7, 3))
    estimates, flat = estimate(values, STATISTICS), values.ravel()
    expected = {"mean": flat.mean(), "std": flat.std(), "p75": np.percentile(flat, 75),
                "p90": np.percentile(flat, 90), "p95": np.percentile(flat, 95),
                "share_above_05": (flat > 0.5).mean(), "share_above_07": (flat > 0.7).mean()}  # fmt: skip
    assert {name: estimates[name] for name in expected} == pytest.approx(expected)


def test_an_interval_is_that_of_a_loop_over_resampled_prompts() -> None:
    """Each resample takes whole prompts, with all of their samples."""
    values = world(np.random.default_rng(1), 9, 4, 0.3)
    estimates = estimate(values, STATISTICS)
    for name, statistic in {"mean": np.mean, "p90": lambda x: np.percentile(x, 90)}.items():
        drawn = [statistic(np.concatenate([values[prompt] for prompt in draw])) for draw in resamples(9)]
        assert estimates[f"{name}_low"] == pytest.approx(np.percentile(drawn, 2.5))
        assert estimates[f"{name}_high"] == pytest.approx(np.percentile(drawn, 97.5))


@pytest.mark.parametrize("many", [1, 50, 10**9])
def test_memory_is_bounded_and_nothing_depends_on_it(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = world(np.random.default_rng(2), 5, 2)
    expected = estimate(values, STATISTICS, values / 2)
    monkeypatch.setattr(statistics, "CHUNK", many)
    assert estimate(values, STATISTICS, values / 2) == expected


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Even where a prompt has the same value in all samples: 20 prompts x 10 samples are 20 numbers."""
    random, hits, wrong = np.random.default_rng(3), 0, 0
    for _ in range(200):
        values = world(random, 20, 10)
        estimates = estimate(values, MEAN)
        hits += estimates["mean_low"] < 0 < estimates["mean_high"]
        estimates = estimate(values.reshape(-1, 1), MEAN)  # as if the images were independent
        wrong += estimates["mean_low"] < 0 < estimates["mean_high"]
    assert 0.88 < hits / 200 < 0.99 and wrong / 200 < 0.6


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    """Prompts differ much, a mitigation takes 0.1 off each."""
    before = world(np.random.default_rng(4), 30, 2, 0.01)
    after = before - 0.1 + 0.01 * world(np.random.default_rng(5), 30, 2, 1.0)
    estimates, of_before = estimate(after, STATISTICS, before), estimate(before, STATISTICS)
    for name in ("mean", "p95"):
        assert estimates[f"{name}_delta"] == pytest.approx(estimates[name] - of_before[name])
        width = estimates[f"{name}_delta_high"] - estimates[f"{name}_delta_low"]
        assert width < 0.25 * (estimates[f"{name}_high"] - estimates[f"{name}_low"])
    assert estimates["mean_delta_low"] < estimates["mean_delta"] < estimates["mean_delta_high"] < 0


def test_a_difference_is_over_the_images_that_both_have() -> None:
    before, after = np.ones((3, 2)), np.zeros((3, 2))
    before[0, 0], after[1] = np.nan, np.nan
    after[2, 1] = 0.5
    estimates = estimate(after, MEAN, before)
    assert estimates["mean"] == pytest.approx(0.5 / 4)
    assert estimates["mean_delta"] == pytest.approx(0.5 / 3 - 1)  # (0, 1), (2, 0) and (2, 1)


@pytest.mark.parametrize("values", [np.full((3, 2), np.nan), np.full((0, 0), np.nan)])
def test_without_a_number_there_is_none(values: np.ndarray) -> None:
    estimates = estimate(values, STATISTICS, values)
    assert len(estimates) == 6 * len(STATISTICS) and np.isnan(list(estimates.values())).all()


def test_one_prompt_has_no_interval() -> None:
    """However many samples of it there are; nor have several of which only one has numbers."""
    alone = np.array([[0.1, 0.3], [np.nan, np.nan]])
    for values in (alone, alone[:1]):
        estimates = estimate(values, MEAN)
        assert estimates["mean"] == pytest.approx(0.2)
        assert np.isnan(estimates["mean_low"]) and np.isnan(estimates["mean_high"])


def test_a_prompt_that_lacks_a_sample_is_not_another_prompt() -> None:
    rows = pd.DataFrame(
        {"prompt_id": ["b", "a", "b"], "sample": [0, 0, 1], "score": [1.0, 2.0, None]}
    ).sample(frac=1, random_state=0)
    assert np.array_equal(by_prompt(rows, "score"), [[2.0, np.nan], [1.0, np.nan]], equal_nan=True)
