"""The detectors' formulas and what judges them, against plain references, curves by hand and scikit-learn."""

import numpy as np
import pandas as pd
import pytest
import torch

from callbacks.mitigations.dynamic_transition import DynamicTransition
from data.prompts import Prompt
from infer.denoising.hooks import DenoisingStep
from infer.detect.detection import by_prompt
from infer.detect.detectors import all_steps, fall, first_step
from infer.metrics.roc import auc, auc_interval, roc, threshold

HAND = np.array([[4.0, 2.0, 1.0, 3.0, 0.5], [4, 3, 2, 1, 0.5], [1, 4, 3, 3.5, 1], [1, 2, 3, 4, 5]])
T = [900.0, 700.0, 500.0, 300.0, 100.0]


def test_wens_metric_is_the_mean_over_the_steps_and_its_first_step() -> None:
    assert all_steps(HAND).tolist() == [sum(row) / 5 for row in HAND.tolist()]
    assert first_step(HAND).tolist() == [4, 4, 1, 1]


def test_a_fall_is_the_depth_of_the_first_minimum_below_the_highest_before_it() -> None:
    """Curve 0 falls from 4 to 1, curve 2 from 4 to 3; the others have no minimum."""
    depth, fired = fall(HAND, T)
    assert depth.tolist() == [0.75, 0, 0.25, 0]
    assert np.array_equal(fired, [300, np.nan, 300, np.nan], equal_nan=True)


def test_of_two_minima_the_first_counts_and_a_flat_one_is_none() -> None:
    depth, fired = fall([[5, 4, 4.5, 1, 2], [5, 4, 4, 5, 5], [0, 0, 0, 0, 0]], T)
    assert depth == pytest.approx([0.2, 0, 0]) and fired[0] == 500 and np.isnan(fired[1:]).all()


@pytest.mark.parametrize("timesteps", [T, [900.0, 700.0, 700.0, 300.0, 100.0]])
def test_a_fall_shows_where_the_dynamic_transition_fires(timesteps: list[float]) -> None:
    """Also where a solver evaluates a timestep twice."""
    curves = np.random.default_rng(0).uniform(1, 2, (300, 5)).astype(np.float32)
    rule = DynamicTransition()
    rule.begin(len(curves), torch.device("cpu"))
    for index, t in enumerate(timesteps):
        step = DenoisingStep(index, t, timesteps, None, 1.0, 0.0, "epsilon", 7.5)
        step.unconditional, step.conditional = (
            torch.zeros(300, 1, 1, 1),
            torch.tensor(curves[:, index]).view(-1, 1, 1, 1),
        )
        rule.observe(step)
    depth, fired = fall(curves, timesteps)
    assert np.array_equal(fired, rule.transition_timestep().numpy(), equal_nan=True)
    assert np.array_equal(depth > 0, ~np.isnan(fired)) and 0 < np.isnan(fired).sum() < 300


def groups(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    memorized, ordinary = random.normal(1, 1, 60 + seed), random.normal(0, 1, 150)
    return (memorized.round(), ordinary.round()) if ties else (memorized, ordinary)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_auc_and_tpr_are_scikit_learns(seed: int, ties: bool) -> None:
    """TPR at a rate: the highest of all thresholds that flag no more of the ordinary ones."""
    metrics = pytest.importorskip("sklearn.metrics")
    memorized, ordinary = groups(seed, ties)
    labels = np.repeat([1, 0], [len(memorized), len(ordinary)])
    scores = np.concatenate([memorized, ordinary])
    assert auc(memorized, ordinary) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    false, true, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    ours = roc(memorized, ordinary)
    assert np.allclose(ours[0], false, atol=1e-6) and np.allclose(ours[1], true, atol=1e-6)
    for rate in (0.01, 0.05, 0.1, 0.5):
        cut = threshold(ordinary, rate)
        assert (ordinary > cut).mean() <= rate
        assert (memorized > cut).mean() == pytest.approx(true[false <= rate].max())


def test_auc_counts_pairs_and_half_of_a_tie() -> None:
    assert auc(np.array([3.0, 1.0]), np.array([2.0, 1.0])) == (2 + 0 + 0.5) / 4
    assert auc(np.array([2.0]), np.array([1.0])) == 1 and auc(np.array([0.0]), np.array([1.0])) == 0


def test_a_rate_that_too_few_prompts_show_has_no_threshold() -> None:
    ordinary = np.arange(100.0)
    assert threshold(ordinary[:99], 0.01) is None and threshold(ordinary, 0.01) == 98
    assert threshold(ordinary[:20], 0.05) == 18


def test_the_interval_covers_as_often_as_it_says() -> None:
    """AUC of N(1, 1) over N(0, 1) is 0.760: in about 95 % of draws within the interval, which is not wide."""
    hits, widths = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        low, high = auc_interval(random.normal(1, 1, 80), random.normal(0, 1, 80))
        hits.append(low <= 0.7602 <= high)
        widths.append(high - low)
    assert np.mean(hits) >= 0.85 and 0.12 < np.mean(widths) < 0.18
    # nothing can be said of groups that do not overlap, or of one prompt
    for pair in ((np.ones(5), np.zeros(5)), (np.zeros(5), np.ones(5)), (np.ones(1), np.arange(5) / 3)):
        assert np.isnan(auc_interval(*pair)).all()


def test_a_prompt_has_the_means_over_its_sound_noises() -> None:
    """One noise whose latents were not finite, one with a score that is not; and a prompt with none left."""
    nan, no = np.nan, [False] * 6
    samples = pd.DataFrame({
        "first_step": [1.0, 3.0, 5.0, nan, 1.0, 1.0], "all_steps": [1.0] * 6, "fall": [0.2, 0.4] * 3,
        "fired_timestep": [500.0, nan, 300.0, 100.0, nan, nan],
        "failed_guided": [*no[:4], True, False], "failed_free": [*no[:5], True],
    })  # fmt: skip
    asked = [(Prompt(f"p{n}", f"text {n}"), label) for n, label in enumerate([True, False, None])]
    rows = by_prompt(asked, samples)
    assert rows["samples"].tolist() == [2, 1, 0] and rows["prompt_id"].tolist() == ["p0", "p1", "p2"]
    assert np.array_equal(rows["first_step"], [2, 5, nan], equal_nan=True)
    assert np.array_equal(rows["fired_timestep"], [500, 300, nan], equal_nan=True)
    assert rows["fall"].iloc[0] == pytest.approx(0.3) and rows["attention_d"].isna().all()
    assert rows["memorized"].tolist() == [True, False, pd.NA]
