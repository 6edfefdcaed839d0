"""The detectors' formulas, against curves by hand and the dynamic transition."""

import numpy as np
import pandas as pd
import pytest
import torch

from callbacks.mitigations.dynamic_transition import DynamicTransition
from data.prompts import Prompt
from infer.denoising.hooks import DenoisingStep
from infer.detect.detectors import all_steps, fall, first_step
from infer.detect.measure import by_prompt

CURVES = np.array([[4.0, 2.0, 1.0, 3.0, 0.5], [4, 3, 2, 1, 0.5], [1, 4, 3, 3.5, 1], [1, 2, 3, 4, 5]])
T = [900.0, 700.0, 500.0, 300.0, 100.0]


def test_wens_metric_is_the_mean_over_the_steps_and_its_first_step() -> None:
    assert all_steps(CURVES).tolist() == [sum(row) / 5 for row in CURVES.tolist()]
    assert first_step(CURVES).tolist() == [4, 4, 1, 1]


def test_a_fall_is_the_depth_of_the_first_minimum_below_the_highest_before_it() -> None:
    """Of two minima the first counts, and a flat one is none."""
    depth, fired = fall(CURVES, T)
    assert depth.tolist() == [0.75, 0, 0.25, 0]
    assert np.array_equal(fired, [300, np.nan, 300, np.nan], equal_nan=True)
    depth, fired = fall([[5, 4, 4.5, 1, 2], [5, 4, 4, 5, 5], [0, 0, 0, 0, 0]], T)
    assert depth == pytest.approx([0.2, 0, 0]) and fired[0] == 500 and np.isnan(fired[1:]).all()


@pytest.mark.parametrize("timesteps", [T, [900.0, 700.0, 700.0, 300.0, 100.0]])
def test_a_fall_shows_where_the_dynamic_transition_fires(timesteps: list[float]) -> None:
    """Also where a solver evaluates a timestep twice."""
    curves = np.random.default_rng(0).uniform(1, 2, (300, 5)).astype(np.float32)
    rule, zeros = DynamicTransition(), torch.zeros(300, 1, 1, 1)
    rule.begin(len(curves), torch.device("cpu"))
    for index, t in enumerate(timesteps):
        conditional = torch.tensor(curves[:, index]).view(-1, 1, 1, 1)
        rule.observe(DenoisingStep(index, t, timesteps, None, 1.0, 0.0, "epsilon", 7.5, zeros, conditional))
    depth, fired = fall(curves, timesteps)
    assert np.array_equal(fired, rule.transition_timestep().numpy(), equal_nan=True)
    assert np.array_equal(depth > 0, ~np.isnan(fired)) and 0 < np.isnan(fired).sum() < 300


def test_a_prompt_has_the_means_over_its_valid_noises() -> None:
    """Latents of one noise are not finite, one score of another, and a prompt has no valid noise."""
    nan, no = np.nan, [False] * 6
    samples = pd.DataFrame({
        "first_step": [1.0, 3.0, 5.0, nan, 1.0, 1.0], "all_steps": [1.0] * 6, "fall": [0.2, 0.4] * 3,
        "fired_timestep": [500.0, nan, 300.0, 100.0, nan, nan],
        "failed_guided": [*no[:4], True, False], "failed_unguided": [*no[:5], True],
    })  # fmt: skip
    labelled = [(Prompt(f"p{n}", f"text {n}"), label) for n, label in enumerate([True, False, None])]
    rows = by_prompt(labelled, samples)
    assert rows["samples"].tolist() == [2, 1, 0] and rows["prompt_id"].tolist() == ["p0", "p1", "p2"]
    assert np.array_equal(rows["first_step"], [2, 5, nan], equal_nan=True)
    assert np.array_equal(rows["fired_timestep"], [500, 300, nan], equal_nan=True)
    assert rows["fall"].iloc[0] == pytest.approx(0.3) and rows["attention_d"].isna().all()
    assert rows["memorized"].tolist() == [True, False, pd.NA]
