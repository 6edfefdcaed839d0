"""AUC, ROC curve and thresholds, against scikit-learn and by hand."""

import numpy as np
import pytest

from infer.metrics.roc import auc, auc_interval, roc, threshold


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_auc_and_tpr_are_scikit_learns(seed: int, ties: bool) -> None:
    """TPR at a rate: the highest of all thresholds that flag no more of the ordinary ones."""
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    memorized, ordinary = random.normal(1, 1, 60 + seed), random.normal(0, 1, 150)
    if ties:
        memorized, ordinary = memorized.round(), ordinary.round()
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
    # groups that do not overlap, or one prompt, show nothing
    for pair in ((np.ones(5), np.zeros(5)), (np.zeros(5), np.ones(5)), (np.ones(1), np.arange(5) / 3)):
        assert np.isnan(auc_interval(*pair)).all()
