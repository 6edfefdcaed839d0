"""Presets of other papers' methods by `python -m infer predict`: alone, and several in one run."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from infer.__main__ import main
from tests.conftest import BASE, ROOT
from tests.infer.predict.runs import command, pixels, refused, rows_of

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4  # at 751, 501, 251, 1
GUIDED = 2 * STEPS
# options in place of the preset's, and what an image costs: evaluations, and those with a gradient
PRESETS: dict[str, tuple[list[str], int, int]] = {
    "somepalli_word": ([], GUIDED, 0),
    "somepalli_number": ([], GUIDED, 0),
    "somepalli_repeat": ([], GUIDED, 0),
    "somepalli_noise": ([], GUIDED, 0),
    "wen": (["--mitigation.target", "1e-6", "--mitigation.iterations", "2"], GUIDED + 1 + 2, 2),
    "ren": ([], GUIDED, 0),
    "han_batch": (["--mitigation.timestep", "700"], GUIDED - 1 + 2 * 4, 0),
    "han_sample": (["--mitigation.target", "1e-6", "--mitigation.iterations", "2"], GUIDED + 4, 4),
    "sail": (["--mitigation.target", "1e-3", "--mitigation.iterations", "1"], GUIDED + 8, 8),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_runs_on_the_bundled_model(preset: str, tmp_path: Path) -> None:
    """Under Lightning, with its gradients; the images are not those of the other seeds."""
    options, nfe, gradients = PRESETS[preset]
    prompts = str(ROOT / "data/emoji/shards/fluent-emoji-00000.tar.gz")
    arguments = command(BASE, tmp_path, STEPS, "--prompts", prompts, "--limit", "2", "--mitigation", preset)
    assert main([*arguments, *options]) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 2 and rows["failed_step"].isna().all()
    assert set(rows["nfe"]) == {nfe} and set(rows["gradient_passes"]) == {gradients}
    assert {label.partition("(")[0] for label in rows["mitigation"]} == {preset}
    assert len({image.tobytes() for image in pixels(tmp_path).values()}) == 2


@pytest.mark.parametrize("names, before", [("han_batch+og_stp", -2.0), ("somepalli_word+stp", 0.0)])
def test_several_presets_of_one_run(predict: Callable[..., Path], names: str, before: float) -> None:
    """Noise adjustment with another transition, added words with one: as listed, options for the last."""
    options = ["--mitigation", names, "--mitigation.timestep", "500", "--prompt", "red square"]
    folder = predict(*options, steps=10)  # the first at 901, above the transition of han_batch
    label = names if names.endswith("+stp") else f"{names}(timestep=500)"
    row = rows_of(folder).iloc[0]
    assert row["mitigation"] == label and row["transition_timestep"] == 401
    scales = pd.read_parquet(folder / "traces.parquet")["guidance_scale"].tolist()
    assert scales == [before] * 5 + [7.5] * 5


@pytest.mark.parametrize(
    "names, why",
    [
        ("han_sample+sail", "two mitigations change the initial noise"),
        ("stp+og_two_pass", "TwoPassTransition cannot be combined"),
        ("stp+nothing", "no mitigation preset 'nothing'"),
    ],
)
def test_what_makes_no_sense_together_is_refused(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture, names: str, why: str
) -> None:
    arguments = command(tiny_pipeline, tmp_path / "run", 10, "--prompt", "sun", "--mitigation", names)
    assert why in refused(arguments, capsys)
