"""`python -m infer basin` in miniature: its files, its numbers made again by hand, and how it refuses."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from data.captioned import load_captioned
from infer.__main__ import main
from infer.basin import plots as basin_plots
from infer.basin.explore import explore, spread
from infer.basin.numbers import numbers
from infer.basin.options import Basin, Findings
from infer.denoising.curves import SPACES
from infer.denoising.hooks import Request
from infer.denoising.noise import sample_seed
from infer.denoising.sampling import make_images
from infer.models.pipeline import load_pipeline
from infer.options import ModelOptions
from tests.conftest import CAPTIONS, random_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, POINTS, OPPOSITE, SCALE = 10, [999, 700, 300, 0], -2.0, 5.0


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run that duplicated four of eight images."""
    folder = tmp_path_factory.mktemp("training")
    model = random_pipeline()
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.3)  # so that guidance matters
    model.save_pretrained(folder / "pipeline")
    about = {"pipeline": "", "sources": [str(tiny_shards)], "ordinary": []}
    (folder / "provenance.json").write_text(json.dumps(about))
    rows = {"id": [f"s{n}" for n in range(8)], "caption": CAPTIONS, "duplicated": [True] * 4 + [False] * 4}
    pd.DataFrame(rows | {"times_shown": 1}).to_parquet(folder / "exposures.parquet")
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five prompts, two of which are memorized captions."""
    path = tmp_path_factory.mktemp("others") / "others.txt"
    path.write_text("sun\nRed  square\nbig sun\nblue circle\ntea cup\n")
    return path


@pytest.fixture(scope="module")
def arguments(run: Path, others: Path) -> list[str]:
    return [
        "basin", "--run", str(run), "--others", str(others), "--points", ",".join(map(str, POINTS)),
        "--prompt_id", "s2", "--rows", "2", "--batch_size", "3", "--model.num_inference_steps", str(STEPS),
        "--model.guidance_scale", str(SCALE), "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(arguments: list[str], one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("basins") / "finished"
    assert main([*arguments, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def found(finished: Path) -> dict:
    return json.loads((finished / "basin.json").read_text())


def looked(**options) -> Findings:
    dynamic = {space: DynamicTransition(watch=space) for space in SPACES}
    return explore(Basin(out="unused", device="cpu", **options), StaticTransition, dynamic)


@pytest.fixture(scope="module")
def long(run: Path, one_thread: None) -> Findings:
    """Curves with enough steps for minima."""
    return looked(run=str(run), model=ModelOptions(num_inference_steps=25), points=[999.0])


def by_hand(run: Path, keys: list[str], scale: float, *rules: StaticTransition) -> dict[str, Image.Image]:
    """What `predict` would make of the memorized prompts."""
    pipe = load_pipeline(str(run / "pipeline"))
    requests = [Request(key, 0, CAPTIONS[int(key[1:])], sample_seed(0, key, 0)) for key in keys]
    images, _ = make_images(pipe, torch.device("cpu"), requests, 16, scale, STEPS, rules=rules)
    return dict(zip(keys, images, strict=True))


def correlation(a: Image.Image, b: Image.Image) -> float:
    """Of 32x32 RGB: each pixel of 16x16 twice in both directions changes nothing."""
    return float(np.corrcoef(np.asarray(a, float).ravel(), np.asarray(b, float).ravel())[0, 1])


def first_minimum(curve: list[float], timesteps: list[float]) -> float | None:
    """The paper's rule: t_i of the first i with d[i-2] > d[i-1] < d[i]."""
    for i in range(2, len(curve)):
        if curve[i - 2] > curve[i - 1] < curve[i]:
            return timesteps[i]
    return None


def test_every_picture_is_there(finished: Path) -> None:
    names = {"trace.png", "trace.svg", "sweep.png", "magnitudes.png", "magnitudes.svg", "basin.json"}
    assert {path.name for path in finished.iterdir()} == names
    for path in finished.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 20
    assert all(path.read_text().rstrip().endswith("</svg>") for path in finished.glob("*.svg"))


@pytest.mark.parametrize(
    "point, scale, rules",
    [
        (999, SCALE, []),
        (700, SCALE, [StaticTransition(700, 0.0)]),
        (300, SCALE, [StaticTransition(300, 0.0)]),
        (0, 0.0, []),
    ],
)
def test_a_point_is_the_static_transition_there(
    run: Path, tiny_shards: Path, found: dict, point: float, scale: float, rules: list[StaticTransition]
) -> None:
    samples, images = load_captioned(str(tiny_shards)), by_hand(run, ["s0", "s1", "s2", "s3"], scale, *rules)
    expected = [correlation(images[key], samples[samples.position[key]].rgb()) for key in images]
    row = next(row for row in found["points"] if row["timestep"] == point)
    assert row["mean"] == pytest.approx(np.mean(expected), abs=2e-4)
    assert row["p10"] == pytest.approx(np.quantile(expected, 0.1), abs=2e-4)
    assert row["p90"] == pytest.approx(np.quantile(expected, 0.9), abs=2e-4)
    assert row["share_above_05"] == np.mean(np.array(expected) > 0.5) and row["failed"] == 0
    traced = found["trace"]["none"]["similarity"][found["trace"]["points"].index(point)]
    assert traced == pytest.approx(expected[2], abs=2e-4)


@pytest.mark.parametrize("point, scale, rules", [
    (700, SCALE, [StaticTransition(700, OPPOSITE)]),
    (300, SCALE, [StaticTransition(300, OPPOSITE)]),
    (0, OPPOSITE, []),
])  # fmt: skip
def test_the_right_column_is_opposite_guidance(
    run: Path, tiny_shards: Path, found: dict, point: float, scale: float, rules: list[StaticTransition]
) -> None:
    samples, image = load_captioned(str(tiny_shards)), by_hand(run, ["s2"], scale, *rules)["s2"]
    traced = found["trace"]["opposite"]["similarity"][found["trace"]["points"].index(point)]
    assert traced == pytest.approx(correlation(image, samples[samples.position["s2"]].rgb()), abs=2e-4)
    assert found["trace"]["opposite"]["similarity"][0] == found["trace"]["none"]["similarity"][0]


def test_the_dynamic_transition_fires_at_the_first_minimum(long: Findings) -> None:
    """Of each prompt's curve, in each space, held at each scale."""
    told, fired = numbers(long)["groups"]["memorized"], 0
    for how in ("none", "opposite"):
        for space in SPACES:
            curves = long.curves["memorized", how][space]
            assert curves.shape == (4, 25) and np.isfinite(curves).all()
            expected = [first_minimum(curve, long.timesteps) for curve in curves.tolist()]
            seen = long.fired["memorized", how][space].tolist()
            assert [None if math.isnan(t) else t for t in seen] == expected
            some = [t for t in expected if t is not None]
            summary = told[how]["fired"][space]
            assert summary["never"] == expected.count(None) and summary["of"] == 4
            assert summary["median"] == (np.median(some) if some else None)
            fired += len(some)
    assert fired


def test_the_curves_are_those_of_the_held_scale(run: Path, found: dict) -> None:
    """Noise space is alpha times v space; the trace of a run at that scale has the same magnitudes."""
    pipe = load_pipeline(str(run / "pipeline"))
    alphas = pipe.scheduler.alphas_cumprod[[int(t) for t in found["timesteps"]]].sqrt().numpy()
    request = Request("s2", 0, CAPTIONS[2], sample_seed(0, "s2", 0))
    _, seen = make_images(pipe, torch.device("cpu"), [request], 16, OPPOSITE, STEPS)
    curves = found["trace"]["opposite"]["curves"]
    assert np.allclose(curves["epsilon"], seen.difference_rms[0], rtol=1e-3)
    assert np.allclose(curves["unconditional"], seen.unconditional_rms[0], rtol=1e-3)
    assert np.allclose(curves["conditional"], seen.conditional_rms[0], rtol=1e-3)
    assert np.allclose(curves["epsilon"], alphas * curves["model_output"], rtol=1e-3)


def test_others_are_not_memorized(found: dict) -> None:
    """In whatever letters and spaces."""
    assert (found["others"], found["others_left_out"]) == (3, 2)
    assert found["groups"]["others"]["none"]["fired"]["epsilon"]["of"] == 3


def test_without_others_the_memorized_ones_stand_alone(run: Path, tmp_path: Path) -> None:
    """Fewer prompts than there are, one point, and a model that predicts noise."""
    random_pipeline("epsilon").save_pretrained(tmp_path / "pipeline")
    looked_at = looked(
        run=str(run), points=[500.0], limit=2, prompt_id="s1",
        model=ModelOptions(pipeline=str(tmp_path / "pipeline"), num_inference_steps=4),
    )  # fmt: skip
    assert [request.prompt_id for request in looked_at.memorized] == ["s0", "s3", "s1"]
    assert set(looked_at.curves) == {("memorized", "none"), ("memorized", "opposite")}
    assert not basin_plots.two_spaces(looked_at)
    looked_at.basin.out = str(tmp_path / "out")
    assert len(basin_plots.save(looked_at)) == 5


def test_half_way_is_the_first_point_below_the_middle(found: dict, long: Findings) -> None:
    ordinary, never = found["points"][0]["mean"], found["points"][-1]["mean"]
    below = [row["timestep"] for row in found["points"] if row["mean"] <= (ordinary + never) / 2]
    assert found["half_way_timestep"] == (max(below, default=None) if ordinary > never else None)
    means = {math.inf: 0.9, 700.0: 0.8, 300.0: 0.5, 100.0: 0.2, -math.inf: 0.1}
    similarity = {("none", t): pd.Series([mean, mean]) for t, mean in means.items()}
    made_up = replace(long, basin=replace(long.basin, points=[700.0, 300.0, 100.0]), similarity=similarity)
    assert made_up.half_way() == 300
    similarity["none", math.inf] = pd.Series([0.0])
    assert made_up.half_way() is None


def test_a_failed_image_is_counted_and_left_out(long: Findings) -> None:
    made_up = replace(long, similarity={("none", math.inf): pd.Series([0.2, 0.8, 0.9, math.nan])})
    row = made_up.by_point().loc[999]
    assert row["mean"] == pytest.approx(1.9 / 3) and row["share_above_05"] == pytest.approx(2 / 3)
    assert row["failed"] == 1


def test_spread() -> None:
    assert spread(range(10), 4) == [0, 3, 6, 9] and spread([5, 6], 4) == [5, 6] and spread("abc", 1) == ["a"]


@pytest.mark.parametrize(
    "change, message",
    [
        (["--run", "/nowhere"], "'/nowhere' is no training run"),
        (["--prompt_id", "s7"], "no memorized prompt 's7' with a training image; one is 's0'"),
        (["--points", "[]"], "points are timesteps, one or more"),
        (["--points", "500,-1"], "none negative"),
        (["--limit", "0"], "--limit: "),
        (["--opposite", "2"], "opposite must be a scale below 0"),
        (["--sscd_protocol", "dcr"], "give --sscd too"),
        (["--model.num_inference_steps", "2"], "a local minimum needs at least 3 denoising steps"),
        (["--device", "abacus"], "device 'abacus' is not here"),
        (["--model.pipeline", "/nowhere"], "no model folder '/nowhere'"),
        (["--others", "/nowhere.txt"], "no prompt file '/nowhere.txt'"),
        (["--others", "RUN"], "are memorized ones: there are no others"),
        (["--training", "/nowhere.tar"], "no shard matches '/nowhere.tar'"),
        (["--prompts", "OTHERS"], "has the id of an image in"),
        (["--sscd", "/nowhere.pt"], "no SSCD model '/nowhere.pt'"),
        (["--nonsense", "1"], "nonsense"),
    ],
)
def test_bad_input_is_one_clear_error_before_anything_is_made(
    arguments: list[str], run: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    change: list[str], message: str,
) -> None:  # fmt: skip
    named = {"RUN": str(run), "OTHERS": str(others)}
    change = [named.get(word, word) for word in change]
    try:
        code = main([*arguments, *change, "--out", str(tmp_path / "out")])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code in (1, 2) and message in captured.err and "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()
