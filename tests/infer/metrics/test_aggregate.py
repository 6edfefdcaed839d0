"""The rows of a comparison's table, from random scores."""

import numpy as np
import pandas as pd
import pytest

from infer.metrics.aggregate import (
    can_win,
    check_same_images,
    in_order,
    memorized_prompts,
    notes_on,
    summarize,
)
from infer.metrics.bootstrap import STATISTICS, by_prompt, estimate
from infer.metrics.columns import measure_of

WAITS = {"never_fired": 0, "without_alternative": None, "peak_memory_gib": 1.5}


def scored(prompts: int = 6, samples: int = 3, seed: int = 0, **columns) -> pd.DataFrame:
    """Samples with scores, in shuffled order."""
    random, count = np.random.default_rng(seed), prompts * samples
    index = pd.MultiIndex.from_product([[f"p{n}" for n in range(prompts)], range(samples)])
    rows = pd.DataFrame(
        {
            "prompt_id": index.get_level_values(0), "sample": index.get_level_values(1),
            "prompt": "a " + index.get_level_values(0), "seed": range(count),
            "similarity_own": random.random(count), "similarity_top": random.random(count),
            "clip_score": random.random(count), "transition_timestep": 500.0, "gated": False,
            "nfe": random.integers(50, 100, count), "seconds": random.random(count),
            "alternative_prompt": None, "failed_step": None, "unreadable": False, "undefined": False,
        }
    ).assign(**columns)  # fmt: skip
    return rows.sample(frac=1, random_state=1)


def test_a_row_holds_the_statistics_of_its_images() -> None:
    rows, none = scored(), scored(seed=5)
    row = summarize("stp", rows, WAITS, none)
    expected = estimate(by_prompt(rows, "similarity_own"), STATISTICS, by_prompt(none, "similarity_own"))
    for name, value in expected.items():
        assert row[name if name.startswith("share") else f"similarity_own_{name}"] == value
    assert summarize("stp", rows.assign(sscd_own=0.6), WAITS)["sscd_share_above_05"] == 1
    assert row["clip_score_mean"] == pytest.approx(rows["clip_score"].mean())
    assert row["clip_score_mean_delta"] == pytest.approx((rows["clip_score"] - none["clip_score"]).mean())
    assert row["similarity_top_p95"] == pytest.approx(rows["similarity_top"].quantile(0.95))
    assert row["nfe_mean"] == rows["nfe"].mean() and row["peak_memory_gib"] == 1.5
    assert (row["mitigation"], row["images"], row["prompts"]) == ("stp", 18, 6)
    assert "sscd_own_mean" not in row and "similarity_own_mean_delta" not in summarize("none", none, WAITS)


def test_gradient_passes_are_a_column_of_runs_that_have_some() -> None:
    rows = scored(6, 1)
    for passes, mean in ([0] * 6, None), ([0, 3] * 3, 1.5):
        assert (
            summarize("wen", rows.assign(gradient_passes=passes), WAITS).get("gradient_passes_mean") == mean
        )
    assert "gradient_passes_mean" not in summarize("of an older run", rows, WAITS)


def test_gated_images_are_no_transitions() -> None:
    """Of six images one is gated, one never fires: four of five fired."""
    timesteps = [900.0, 700.0, 600.0, 500.0, np.nan, np.nan]
    rows = scored(6, 1, transition_timestep=timesteps, gated=[False] * 5 + [True])
    row = summarize("dtp", rows, WAITS)
    assert row["fired_share"] == 0.8 and row["gated_share"] == pytest.approx(1 / 6)
    assert row["transition_timestep_median"] == 650
    idle = summarize("wen", rows.assign(transition_timestep=np.nan), {"never_fired": None})
    assert np.isnan(idle["fired_share"]) and np.isnan(idle["gated_share"])


def test_what_was_left_out_is_counted() -> None:
    """Rows without scores are in no statistic, nor 0, and with more than a few of them no row wins."""
    lost = {
        "failed_step": [None, None, 3, None, None],
        "unreadable": [False, False, False, True, False],
        "undefined": [False, False, False, False, True],
    }
    rows = scored(5, 1, similarity_own=[0.2, 0.4, np.nan, np.nan, np.nan], **lost)
    rows["alternative_prompt"] = ["x", None, "y", "z", "u"]
    row = summarize("detour", rows, WAITS | {"without_alternative": 1})
    assert row["similarity_own_mean"] == pytest.approx(0.3)
    assert (row["failed"], row["unreadable"], row["undefined"], row["without_alternative"]) == (1, 1, 1, 1)
    table = pd.DataFrame(
        {"mitigation": ["none", "a", "b", "base_model"], "images": 100, "undefined": [0, 5, 6, 0]}
    )
    assert can_win(table).tolist() == [True, True, False, False]
    assert in_order(table)["mitigation"].tolist() == ["none", "base_model", "a", "b"]


def test_a_prompt_is_memorized_if_one_of_its_images_is() -> None:
    similarity = [0.1, 0.6, 0.2, 0.5, 0.5, 0.1, np.nan, np.nan, np.nan]
    assert memorized_prompts(scored(3, 3, similarity_own=similarity)) == ["p0"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows[rows["prompt_id"] != "p2"], "none and stp .* 3 images .* 'p2', sample 0"),
        (lambda rows: rows.replace({"prompt_id": {"p2": "p9"}}), "none and stp .* 6 images .* 'p2'"),
        (lambda rows: pd.concat([rows, scored(9)[18:]]), "none and stp .* images are in one of them only"),
        (lambda rows: rows.assign(seed=rows["seed"] + 1),
         "different seeds: 'p0', sample 0, has '0' in none and '1' in stp"),
        (lambda rows: rows.replace({"prompt": {"a p1": "b"}}), "different prompts: 'p1', .* 'a p1' in none"),
    ],
)  # fmt: skip
def test_runs_of_other_images_are_not_compared(change, message: str) -> None:
    rows = scored().sort_values(["prompt_id", "sample"])
    check_same_images({"none": rows, "stp": rows.sample(frac=1)})
    with pytest.raises(ValueError, match=message):
        check_same_images({"none": rows, "stp": change(rows)})


@pytest.mark.parametrize(
    "prompts, samples, expected",
    [(1, 30, ["One prompt with scores"]), (5, 30, ["over fewer than 20", "want 100"]),
     (25, 1, ["want 100"]), (100, 1, [])],
)  # fmt: skip
def test_notes_name_what_few_prompts_cannot_show(prompts: int, samples: int, expected: list[str]) -> None:
    """However many samples each has; prompts without scores do not count, those with a score of 0 do."""
    rows = scored(prompts, samples)
    rows.loc[rows["prompt_id"] == "p0", "similarity_own"] = 0.0
    lost = scored(3, 1, prompt_id=["x", "y", "z"], similarity_own=np.nan)
    for given in (rows, pd.concat([rows, lost])):
        notes = notes_on(given)
        assert len(notes) == len(expected)
        assert all(part in note for note, part in zip(notes, expected, strict=True))


def test_with_a_copy_detector_it_says_what_is_memorized() -> None:
    rows = scored(3, 1, similarity_own=[0.9, 0.9, 0.1], sscd_own=[0.2, 0.6, 0.7])
    assert memorized_prompts(rows) == ["p1", "p2"] and measure_of(rows) == "sscd_own"
    assert memorized_prompts(rows.drop(columns="sscd_own")) == ["p0", "p1"]
