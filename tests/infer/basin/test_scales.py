"""Critical scales in `python -m infer basin`: which images are measured, the numbers, the files, the map."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import Normalize
from PIL import Image

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from data.captioned import load_captioned
from infer.basin.command import basin
from infer.basin.critical_scale import Criterion, critical_scale
from infer.basin.options import Basin, CriticalScaleOptions
from infer.basin.scale_images import choose_images
from infer.basin.scale_plots import draw_maps, draw_widths, over
from infer.basin.scale_summary import MEASURES, Scales
from infer.denoising.curves import SPACES
from infer.denoising.denoiser import Denoiser
from infer.denoising.sampling import embed
from infer.models.pipeline import load_pipeline
from tests.conftest import CAPTIONS
from tests.infer.training_runs import save_training_run

pytestmark = pytest.mark.usefixtures("one_thread")
TIMES = [9, 9, 9, 15, 1, 1, 1, 0]  # the last image was left out of the run


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_training_run(tmp_path_factory.mktemp("training"), tiny_shards)
    config = folder / "pipeline/vae/config.json"  # latents that the random model does not leave at once
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 5.0}))
    rows = pd.read_parquet(folder / "exposures.parquet")
    rows.assign(times_shown=TIMES, caption=[f"shown {text}" for text in CAPTIONS]).to_parquet(
        folder / "exposures.parquet"
    )
    return folder


def options(run: Path | None, **critical) -> Basin:
    return Basin(out="unused", run=str(run), device="cpu", critical_scale=CriticalScaleOptions(**critical))


def test_images_are_taken_from_each_group_and_doubling(run: Path, tiny_shards: Path) -> None:
    """9 and 15 are in one doubling, 8 to 15; the captions are those of the run."""
    samples = load_captioned(str(tiny_shards))
    assert choose_images(options(run), samples) == []
    chosen = choose_images(options(run, images=2, controls=str(tiny_shards)), samples)
    assert [(image.sample.id, image.group, image.times_shown) for image in chosen] == [
        ("s0", "memorized", 9), ("s3", "memorized", 15), ("s4", "ordinary", 1), ("s6", "ordinary", 1),
        ("s7", "unseen", 0), ("s7", "unseen", 0),
    ]  # fmt: skip
    assert chosen[0].caption == "shown red square" and chosen[-1].caption == "sun"


def test_without_a_run_it_is_not_known_how_often(run: Path, tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"id": "s1", "prompt": "a circle"}\n')
    given = options(run, images=1)
    given.run, given.prompts = None, str(tmp_path / "prompts.jsonl")
    first, other = choose_images(given, load_captioned(str(tiny_shards)))
    assert (first.sample.id, first.caption, first.group, other.group) == (
        "s1",
        "a circle",
        "memorized",
        "ordinary",
    )
    assert math.isnan(first.times_shown) and math.isnan(other.times_shown)


@pytest.fixture(scope="module")
def finished(run: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("basins") / "finished"
    arguments = [
        "--run", str(run), "--out", str(out), "--points", "[999]", "--limit", "1", "--device", "cpu",
        "--model.num_inference_steps", "3", "--batch_size", "3", "--critical_scale.images", "2",
        "--critical_scale.levels", "6", "--critical_scale.iterations", "3",
    ]  # fmt: skip
    basin(arguments, StaticTransition, {space: DynamicTransition(watch=space) for space in SPACES})
    return out


def test_the_files_hold_the_scale_of_each_image(run: Path, tiny_shards: Path, finished: Path) -> None:
    """Of mean latents as the pipeline scales them, one image at a time, with its caption and without."""
    rows, maps = (
        pd.read_parquet(finished / "critical_scale.parquet"),
        np.load(finished / "critical_scale.npz"),
    )
    assert rows["id"].tolist() == maps["id"].tolist() == ["s0", "s3", "s4", "s6", "s7"]
    pipe, samples = load_pipeline(str(run / "pipeline")), load_captioned(str(tiny_shards))
    denoise = Denoiser(pipe.unet, pipe.scheduler)
    for number, row in rows.iterrows():
        pixels = torch.from_numpy(samples[samples.position[row["id"]]].pixels(16).copy())[None] / 127.5 - 1
        with torch.no_grad():
            x = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        for name, text in (("caption", row["caption"]), ("empty", "")):
            embedding = embed(pipe, [text], torch.device("cpu"))
            found = critical_scale(denoise, x, embedding, denoise.levels(6), Criterion(3))
            assert row[f"sigma_{name}"] == pytest.approx(float(found.whole), rel=1e-4)
            assert np.allclose(maps[f"sigma_{name}"][number], found.local[0])
    gaps = np.log(maps["sigma_caption"]) - np.log(maps["sigma_empty"])
    assert np.allclose(rows["local_gap"], np.abs(gaps).mean((1, 2)))
    assert np.allclose(rows["log_gap"], np.log(rows["sigma_caption"] / rows["sigma_empty"]))
    numbers = json.loads((finished / "critical_scale.json").read_text())
    assert numbers["groups"] == {"memorized": 2, "ordinary": 2, "unseen": 1} and len(numbers["levels"]) == 6
    assert rows["sigma_caption"].nunique() > 1 and np.ptp(gaps) > 0
    assert 6 <= numbers["evaluations_per_image"] <= 2 * (6 + 4) * 3
    for name in ("critical_scale.png", "memory_map.png"):
        with Image.open(finished / name) as image:
            assert min(image.size) > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 20


def made_up(run: Path, times: list[float], sigma: list[float], group: list[str]) -> Scales:
    """Images with this sigma with the caption, and 1 without, the same everywhere."""
    count = len(times)
    found = pd.DataFrame({
        "id": [f"s{n}" for n in range(count)], "caption": CAPTIONS[:count], "group": group,
        "times_shown": times, "sigma_caption": sigma, "sigma_empty": 1.0, "evaluations": 9,
    })  # fmt: skip
    local = {"caption": np.array(sigma)[:, None, None] * np.ones((2, 2)), "empty": np.ones((count, 2, 2))}
    return Scales(options(run), found, local, [0.1, 1.5, 8.0], [Image.new("RGB", (16, 16), "red")] * count)


def test_a_wider_basin_is_a_higher_rank_and_tells_memorized_images_apart(run: Path) -> None:
    """Ranks of the times: 1.5, 1.5, 3, 4; of the widths: 2, 1, 3, 4. Their correlation is .949."""
    groups = ["ordinary", "ordinary", "memorized", "memorized"]
    scales = made_up(run, [1, 1, 8, 100], [1.2, 1.1, 2.0, 8.0], groups)
    judged = scales.judge("sigma_caption")
    assert judged["rank_correlation"] == pytest.approx(4.5 / math.sqrt(4.5 * 5)) and judged["auc"] == 1
    table = scales.by_exposure()
    assert table[["group", "images", "least", "most"]].to_numpy().tolist() == [
        ["memorized", 1, 8, 8], ["memorized", 1, 100, 100], ["ordinary", 2, 1, 1],
    ]  # fmt: skip
    assert table["log_gap"].tolist() == pytest.approx(np.log([2, 8, 1.15]), abs=2e-3)
    assert scales.notes() == ["1 images have a critical scale above the highest level, 8: that is a bound"]


def test_what_is_undefined_is_named_and_drawn_without(run: Path) -> None:
    nan, groups = math.nan, ["ordinary", "memorized", "memorized"]
    scales = made_up(run, [nan, nan, nan], [1.2, nan, 2.0], groups)
    assert "1 images FAILED" in scales.notes()[0]
    numbers = scales.numbers()["measures"]
    assert numbers["sigma_caption"]["rank_correlation"] is None and numbers["sigma_caption"]["auc"] == 1
    assert set(numbers) == set(MEASURES)
    for draw in (draw_widths, draw_maps):
        assert draw(scales).axes


def test_the_map_lies_over_the_image_as_the_latents_do() -> None:
    """A place at the top right is coloured there, and what is not recalled stays grey."""
    values = np.zeros((4, 4))
    values[0, 3] = 1.0
    drawn = np.asarray(over(Image.new("RGB", (64, 64), "white"), values, Normalize(0, 1), "magma"), int)
    colour = drawn.max(-1) - drawn.min(-1)
    assert colour[:8, -8:].min() > 20 and colour[32:].max() <= 3 and colour[:, :32].max() <= 3


def test_options_without_images_have_no_effect(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    options(run), options(run, images=1, levels=5)
    assert not caplog.messages
    options(run, levels=5)
    assert caplog.messages == ["--critical_scale.* has no effect: --critical_scale.images is 0"]


@pytest.mark.parametrize("change, message", [
    (["--critical_scale.levels", "1"], "levels"), (["--critical_scale.tolerance", "1.5"], "tolerance"),
    (["--critical_scale.controls", "/nowhere.tar"], "no .* '/nowhere.tar'"),
])  # fmt: skip
def test_bad_options_are_refused_before_anything_is_generated(
    run: Path, tmp_path: Path, change: list[str], message: str
) -> None:
    arguments = ["--run", str(run), "--out", str(tmp_path / "out"), "--critical_scale.images", "1", *change]
    with pytest.raises(Exception, match=message):
        basin(arguments, StaticTransition, {})
    assert not (tmp_path / "out").exists()
