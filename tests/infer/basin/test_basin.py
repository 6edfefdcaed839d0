"""`python -m infer basin` in miniature: its files, its numbers computed independently, and its refusals."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from data.batches import spread
from data.captioned import load_captioned
from infer.basin import plots
from infer.basin.command import basin
from infer.basin.explore import explore
from infer.basin.options import Basin
from infer.basin.summary import Findings
from infer.denoising.curves import SPACES
from infer.denoising.noise import sample_seed
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from infer.models.pipeline import load_pipeline
from infer.options import ModelOptions
from tests.conftest import CAPTIONS
from tests.infer.training_runs import save_model, save_training_run
from tests.pixels import local_correlation

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, POINTS, OPPOSITE, SCALE = 10, [999, 700, 300, 0], -2.0, 5.0


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_training_run(tmp_path_factory.mktemp("training"), tiny_shards)


@pytest.fixture(scope="module")
def arguments(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The others are five prompts, two of which are memorized captions."""
    others = tmp_path_factory.mktemp("others") / "others.txt"
    others.write_text("sun\nRed  square\nbig sun\nblue circle\ntea cup\n")
    return [
        "--run", str(run), "--others", str(others), "--points", str(POINTS), "--prompt_id", "s2", "--rows",
        "2", "--batch_size", "3", "--model.num_inference_steps", str(STEPS), "--model.guidance_scale",
        str(SCALE), "--device", "cpu",
    ]  # fmt: skip


def dynamic() -> dict[str, DynamicTransition]:
    return {space: DynamicTransition(watch=space) for space in SPACES}


@pytest.fixture(scope="module")
def finished(arguments: list[str], one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("basins") / "finished"
    basin([*arguments, "--out", str(out)], StaticTransition, dynamic())
    return out


@pytest.fixture(scope="module")
def numbers(finished: Path) -> dict:
    return json.loads((finished / "basin.json").read_text())


def explored(**options) -> Findings:
    basin = Basin(out="unused", device="cpu", **options)
    return explore(basin, load_captioned(*basin.training), StaticTransition, dynamic())


@pytest.fixture(scope="module")
def long(run: Path, one_thread: None) -> Findings:
    """Curves with enough steps for minima."""
    return explored(run=str(run), model=ModelOptions(num_inference_steps=25), points=[999.0])


def similarities(run: Path, source: Path, scale: float, *rules: StaticTransition) -> list[float]:
    """Correlation of what `predict` generates for the memorized prompts with their training images."""
    pipe, samples = load_pipeline(str(run / "pipeline")), load_captioned(str(source))
    requests = [Request(f"s{n}", 0, CAPTIONS[n], sample_seed(0, f"s{n}", 0)) for n in range(4)]
    images, _ = make_images(pipe, torch.device("cpu"), requests, 16, scale, STEPS, rules=rules)
    return [
        local_correlation(image, samples[samples.position[r.prompt_id]].rgb())
        for r, image in zip(requests, images, strict=True)
    ]


def test_every_figure_is_written(finished: Path) -> None:
    names = {"trace.png", "trace.svg", "sweep.png", "magnitudes.png", "magnitudes.svg", "basin.json"}
    assert {path.name for path in finished.iterdir()} == names
    for path in finished.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 20
    assert all(path.read_text().rstrip().endswith("</svg>") for path in finished.glob("*.svg"))


@pytest.mark.parametrize("point, before, scale, rules", [
    (999, "none", SCALE, []), (700, "none", SCALE, [StaticTransition(700, 0.0)]), (0, "none", 0.0, []),
    (700, "opposite", SCALE, [StaticTransition(700, OPPOSITE)]), (0, "opposite", OPPOSITE, []),
])  # fmt: skip
def test_a_point_is_the_static_transition_there(
    run: Path, tiny_shards: Path, numbers: dict, point: float, before: str, scale: float,
    rules: list[StaticTransition],
) -> None:  # fmt: skip
    expected = similarities(run, tiny_shards, scale, *rules)
    traced = numbers["trace"][before]["similarity"][numbers["trace"]["points"].index(point)]
    assert traced == pytest.approx(expected[2], abs=2e-4)
    if before == "none":
        row = next(row for row in numbers["points"] if row["timestep"] == point)
        assert row["mean"] == pytest.approx(np.mean(expected), abs=2e-4)
        assert row["p10"] == pytest.approx(np.quantile(expected, 0.1), abs=2e-4)
        assert row["p90"] == pytest.approx(np.quantile(expected, 0.9), abs=2e-4)
        assert row["share_above_05"] == np.mean(np.array(expected) > 0.5) and row["failed"] == 0


def first_minimum(curve: list[float], timesteps: list[float]) -> float:
    """The paper's rule: t_i of the first i with d[i-2] > d[i-1] < d[i]; NaN without one."""
    minima = (i for i in range(2, len(curve)) if curve[i - 2] > curve[i - 1] < curve[i])
    return next((timesteps[i] for i in minima), math.nan)


def test_the_dynamic_transition_fires_at_the_first_minimum(long: Findings) -> None:
    """Of each prompt's curve, in each space, while either scale is held."""
    some = 0
    for before in ("none", "opposite"):
        stats = long.firing("memorized", before)
        for space in SPACES:
            curves = long.curves["memorized", before][space]
            expected = [first_minimum(curve, long.timesteps) for curve in curves.tolist()]
            assert curves.shape == (4, 25) and np.isfinite(curves).all()
            assert np.array_equal(long.fired["memorized", before][space], expected, equal_nan=True)
            assert stats[space]["never"] == np.isnan(expected).sum() and stats[space]["of"] == 4
            if not np.isnan(expected).all():
                assert stats[space]["median"] == np.nanmedian(expected)
                some += 1
    assert some


def test_the_curves_are_those_of_the_held_scale(run: Path, numbers: dict) -> None:
    """Noise space is alpha times v space; the trace of a run at that scale has the same magnitudes."""
    pipe = load_pipeline(str(run / "pipeline"))
    alphas = pipe.scheduler.alphas_cumprod[[int(t) for t in numbers["timesteps"]]].sqrt().numpy()
    request = Request("s2", 0, CAPTIONS[2], sample_seed(0, "s2", 0))
    _, denoised = make_images(pipe, torch.device("cpu"), [request], 16, OPPOSITE, STEPS)
    curves = numbers["trace"]["opposite"]["curves"]
    assert np.allclose(curves["epsilon"], denoised.difference_rms[0], rtol=1e-3)
    assert np.allclose(curves["unconditional"], denoised.unconditional_rms[0], rtol=1e-3)
    assert np.allclose(curves["conditional"], denoised.conditional_rms[0], rtol=1e-3)
    assert np.allclose(curves["epsilon"], alphas * curves["model_output"], rtol=1e-3)


def test_others_are_not_memorized(numbers: dict) -> None:
    """Whatever their letters' case and spaces."""
    assert (numbers["others"], numbers["others_left_out"]) == (3, 2)
    assert numbers["groups"]["others"]["none"]["fired"]["epsilon"]["of"] == 3


def test_few_prompts_one_point_two_noises_and_a_model_that_predicts_noise(run: Path, tmp_path: Path) -> None:
    model = ModelOptions(pipeline=str(save_model(tmp_path / "pipeline", "epsilon")), num_inference_steps=4)
    options = {"points": [500.0], "limit": 2, "prompt_id": "s1", "samples_per_prompt": 2, "model": model}
    findings = explored(run=str(run), **options)
    requested = [(request.prompt_id, request.sample) for request in findings.requests["memorized"]]
    assert requested == [(key, sample) for key in ("s0", "s3", "s1") for sample in (0, 1)]
    assert set(findings.curves) == {("memorized", "none"), ("memorized", "opposite")}
    assert len(findings.similarity["none", 500.0]) == 6 and findings.traced.prompt_id == "s1"
    assert not plots.has_two_spaces(findings)
    for draw in (plots.trace, plots.sweep, plots.magnitudes):
        assert draw(findings).axes


def similarity_of(long: Findings, means: dict[float, list[float]], failed: int = 0) -> Findings:
    """Findings with these similarities, by clamped point."""
    options = replace(long.options, points=[t for t in means if math.isfinite(t)] or [999.0])
    similarity = {("none", t): dict(enumerate(values)) for t, values in means.items()}
    failures = {key: [*range(failed)] for key in similarity}
    return replace(long, options=options, similarity=similarity, failed=failures)


def test_half_way_is_the_first_point_below_the_middle(long: Findings) -> None:
    means = {math.inf: [0.9], 700.0: [0.8], 300.0: [0.5], 100.0: [0.2], -math.inf: [0.1]}
    assert similarity_of(long, means).half_way() == 300
    assert similarity_of(long, means | {math.inf: [0.0]}).half_way() is None


def test_what_is_undefined_is_counted_and_left_out(long: Findings) -> None:
    """One image failed, another has one colour."""
    findings = similarity_of(
        long, {math.inf: [math.nan, 0.2, 0.8, 0.9, math.nan], -math.inf: [0.1]}, failed=1
    )
    row = findings.by_point().loc[999]
    assert row["mean"] == pytest.approx(1.9 / 3) and row["share_above_05"] == pytest.approx(2 / 3)
    assert (row["failed"], row["undefined"]) == (1, 1)
    assert "1 images FAILED" in findings.summary_lines()[1] and "one colour" in findings.summary_lines()[2]


def test_spread() -> None:
    assert spread([*range(10)], 4) == [0, 3, 6, 9] and spread([5, 6], 4) == [5, 6] == spread([5, 6], None)


@pytest.mark.parametrize("change, message", [
    (["--run", "/nowhere"], "'/nowhere' is no training run"),
    (["--prompt_id", "s7"], "no memorized prompt 's7' with a training image; one is 's0'"),
    (["--points", "[]"], "give at least one timestep"),
    (["--points", "[500,-1]"], "--points"),
    (["--opposite", "2"], "--opposite"),
    (["--model.guidance_scale", "0"], "give a --model.guidance_scale above 0"),
    (["--model.num_inference_steps", "2"], "a local minimum needs at least 3 denoising steps"),
    (["--others", "RUN"], "are memorized: give others"),
    (["--training", "[/nowhere.tar]"], "no .* '/nowhere.tar'"),
    (["--run", "RUN", "--prompts", "OTHERS"], "has the id of an image in"),
])  # fmt: skip
def test_bad_input_is_refused_before_anything_is_generated(
    arguments: list[str], tmp_path: Path, change: list[str], message: str
) -> None:
    named = {"RUN": arguments[1], "OTHERS": arguments[3]}
    change = [named.get(word, word) for word in change]
    with pytest.raises(Exception, match=message):
        basin([*arguments, *change, "--out", str(tmp_path / "out")], StaticTransition, dynamic())
    assert not (tmp_path / "out").exists()
