"""Counts of a predict run: images with a transition, and images below the gate."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.infer.predict.runs import captions, rows_of, summary_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "rule", [["StaticTransition", "--mitigation.timestep", "300"], ["DynamicTransition"]]
)
def test_images_below_the_gate_have_no_transition(
    predict: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture, rule: list[str]
) -> None:
    """They are counted as gated, and neither as fired nor as never fired, nor in the median timestep."""
    prompts = ["--prompts", captions(tmp_path)]
    first = pd.read_parquet(predict(*prompts, "--out", str(tmp_path / "none"), steps=8) / "traces.parquet")
    first = first[first["step"] == 0].set_index("prompt_id")["difference_rms"]
    gate = first.median()
    out = predict(*prompts, "--mitigation", *rule, "--mitigation.gate", str(gate), steps=8)
    rows, summary = rows_of(out).set_index("prompt_id"), summary_of(out)
    below = first.index[first < gate]
    assert 0 < len(below) < len(rows) and list(rows.index[rows["gated"]]) == list(below)
    assert rows.loc[below, "transition_timestep"].isna().all()
    fired = rows["transition_timestep"].dropna()
    assert summary["gated"] == len(below) and summary["fired"] == len(fired)
    assert summary["never_fired"] == len(rows) - len(below) - len(fired)
    assert json.dumps(summary["transition_timestep_median"]) == json.dumps(
        fired.median() if len(fired) else None
    )
    assert f"{len(below)} were below the gate and had ordinary guidance" in capsys.readouterr().out
    if rule[0] == "StaticTransition":
        assert set(fired) == {251} and summary["never_fired"] == 0


def test_without_a_gate_no_image_is_gated(predict: Callable[..., Path]) -> None:
    out = predict("--prompt", "red square", "--mitigation", "stp")
    assert not rows_of(out)["gated"].any() and summary_of(out)["gated"] == 0
