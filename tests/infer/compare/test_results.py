"""What a comparison says of images that are lost, alike, or not searched."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from infer.compare.results import Measured

KEYS = pd.MultiIndex.from_product([["a", "b", "c", "d", "e"], range(2)])


def scored(seed: int, **columns) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    rows = pd.DataFrame({
        "prompt_id": KEYS.get_level_values(0), "sample": KEYS.get_level_values(1), "prompt": "a",
        "similarity_own": random.random(10), "similarity_top": random.random(10), "failed_step": None,
        "clip_score": random.random(10), "unreadable": False, "undefined": False,
    })  # fmt: skip
    return rows.assign(**columns).sample(frac=1, random_state=seed)


def notes(runs: dict[str, pd.DataFrame]) -> str:
    training = SimpleNamespace(
        own=lambda rows: [[0]] * len(rows), renamed=lambda rows: 0, left_out=lambda: ["x1", "x2", "x3", "x4"]
    )
    return "\n".join(Measured(training, runs, {}, None, {}, too_long=2).notes())


def test_three_black_images_of_ten_are_counted_and_named_and_the_mitigation_is_not_ranked() -> None:
    black = scored(1, undefined=[True] * 3 + [False] * 7)
    text = notes({"none": scored(0), "dtp": black, "stp": scored(2, unreadable=[True] + [False] * 9)})
    assert "Left out of the similarity, of one colour: 3 of 10 images of dtp" in text
    assert "Left out of the similarity, unreadable: 1 of 10 images of stp" in text and "failed" not in text
    assert "Not ranked, as more than 5% of the images are left out: dtp, stp" in text
    assert (
        "4 training images are not searched, they cannot be read or have one colour: x1, x2, x3, ..." in text
    )
    assert "2 of the prompts are longer than CLIP reads" in text and "The same images" not in text


def test_mitigations_that_a_coarse_grid_makes_the_same_run_are_named() -> None:
    """Whatever the order of their rows."""
    runs = {"none": scored(0), "stp(timestep=500)": scored(1), "stp(timestep=650)": scored(1).sort_index()}
    assert "The same images under stp(timestep=500) and stp(timestep=650): their settings" in notes(runs)
