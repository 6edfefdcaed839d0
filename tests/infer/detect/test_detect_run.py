"""`python -m infer detect` in miniature: its files, its numbers made again by hand, and how it refuses."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from infer.denoising.curves import watched_curves
from infer.denoising.hooks import Request
from infer.denoising.noise import sample_seed
from infer.denoising.sampling import encode, make_images
from infer.detect import detection as detect
from infer.detect import plots as detect_plots
from infer.detect.detection import DETECTORS, Detected, Detection
from infer.detect.detectors import auc, fall
from infer.options import ModelOptions
from tests.conftest import CAPTIONS, random_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, STEPS, SCALE = torch.device("cpu"), 10, 5.0
OTHERS = ["sun", "Red  square", "big sun", "blue circle", "tea cup", "Big Sun", "old tea", "cat map"]
KEPT = ["big sun", "tea cup", "old tea", "cat map"]  # without memorized ones, and one that comes again


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run that duplicated four of eight images (red square, blue circle, sun, green leaf)."""
    folder = tmp_path_factory.mktemp("training")
    model = random_pipeline()
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.3)  # so that guidance matters
    model.save_pretrained(folder / "pipeline")
    again = [text in ("red square", "blue circle", "sun", "green leaf") for text in CAPTIONS]
    rows = {"id": [f"s{n}" for n in range(8)], "caption": CAPTIONS, "duplicated": again, "times_shown": 1}
    pd.DataFrame(rows).to_parquet(folder / "exposures.parquet")
    return folder


@pytest.fixture(scope="module")
def options(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    others = tmp_path_factory.mktemp("others") / "others.txt"
    others.write_text("\n".join(OTHERS))
    return {
        "run": str(run), "ordinary": str(others),
        "model": ModelOptions(num_inference_steps=STEPS, guidance_scale=SCALE),
        "samples_per_prompt": 2, "device": "cpu", "batch_size": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Detected:
    return Detection(out=str(tmp_path_factory.mktemp("out") / "new"), **options).measure()


def printed(found: Detected) -> str:
    Console(width=120, file=(out := io.StringIO())).print(detect_plots.table(found))
    return out.getvalue()


def test_the_groups_are_the_runs_prompts_and_others_that_say_something_else(found: Detected) -> None:
    rows = found.rows
    assert set(rows["prompt"][rows["memorized"]]) == {"red square", "blue circle", "sun", "green leaf"}
    assert rows["prompt"][~rows["memorized"]].tolist() == KEPT
    assert found.left_out == 4 and (rows["samples"] == 2).all() and found.counts()["unknown"] == 0
    assert rows.columns.tolist() == [
        "prompt_id", "prompt", "memorized", "samples", "first_step", "all_steps", "fall", "fired_timestep",
        "attention_d", "attention_e",
    ]  # fmt: skip


def test_the_scores_are_those_of_ordinary_runs_of_the_same_noise(found: Detected) -> None:
    """With guidance, from the traces of the images; without it, from the watched curves."""
    pipe, side = found.detection.model.load(CPU), 16
    requests = [
        Request(row.prompt_id, n, row.prompt, sample_seed(0, row.prompt_id, n))
        for row in found.rows.itertuples()
        for n in range(2)
    ]
    _, made = make_images(pipe, CPU, requests, side, SCALE, STEPS)
    curves = made.difference_rms.double().numpy().reshape(len(found.rows), 2, STEPS)
    assert np.allclose(found.rows["first_step"], curves[:, :, 0].mean(1), rtol=1e-4)
    assert np.allclose(found.rows["all_steps"], curves.mean((1, 2)), rtol=1e-4)
    timesteps, watched = watched_curves(pipe, requests, side, 0.0, STEPS, CPU, 16)
    depth, fired = (each.reshape(-1, 2) for each in fall(watched["epsilon"], timesteps))
    assert np.allclose(found.rows["fall"], depth.mean(1), atol=1e-4) and depth.max() > 0.01
    assert np.allclose(found.rows["fired_timestep"], pd.DataFrame(fired).mean(axis=1), equal_nan=True)


def test_no_batch_size_changes_a_score(found: Detected) -> None:
    other = replace(found.detection, batch_size=16).measure()
    names = [*DETECTORS, "fired_timestep"]
    assert np.allclose(found.rows[names], other.rows[names], rtol=1e-4, atol=1e-5, equal_nan=True)
    assert found.rows[[*DETECTORS]].std().min() > 0


def test_the_files_hold_the_scores_and_what_they_are_worth(found: Detected) -> None:
    paths = [*found.write(), *detect_plots.save(found)]
    assert [path.name for path in paths] == [f"detection.{s}" for s in ("parquet", "json", "png", "svg")]
    assert sorted(Path(found.detection.out).iterdir()) == sorted(paths)  # no half-written file stays
    rows, numbers = pd.read_parquet(paths[0]), json.loads(paths[1].read_text())
    assert np.array_equal(rows[[*DETECTORS]], found.rows[[*DETECTORS]])
    assert rows["memorized"].tolist() == [True] * 4 + [False] * 4
    assert numbers["detectors"].keys() == DETECTORS.keys() == set(found.names)
    for name, judged in numbers["detectors"].items():
        memorized, ordinary = rows[name][rows["memorized"]], rows[name][~rows["memorized"]]
        pairs = np.subtract.outer(memorized.to_numpy(), ordinary.to_numpy())
        assert judged["auc"] == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
        assert judged["auc_low"] <= judged["auc"] <= judged["auc_high"]
        assert judged["tpr_at_fpr"] == {"0.01": None, "0.05": None, "0.1": None}
        assert judged["threshold"] is None
    assert "TPR at 1 % FPR needs at least 100 ordinary prompts, there are 4" in numbers["notes"]
    assert numbers["left_out"] == 4 and numbers["failed"] == []
    assert min(numbers["seconds_per_prompt"].values()) > 0 and len(numbers["seconds_per_prompt"]) == 2
    assert "ordinary prompts were left out" in found.told() and "seconds per prompt" in found.told()
    assert all(name in printed(found) for name in DETECTORS)


def test_a_rate_that_can_be_shown_is_told(found: Detected) -> None:
    """A quarter of four ordinary prompts is one: the threshold is the second highest score."""
    some = replace(found, detection=replace(found.detection, false_positive_rate=0.25))
    judged = some.judge("all_steps")
    memorized, ordinary = some.scores("all_steps", True), some.scores("all_steps", False)
    assert judged["threshold"] == sorted(ordinary)[-2]
    assert judged["tpr_at_fpr"]["0.25"] == (memorized > judged["threshold"]).mean()
    assert judged["auc"] == auc(memorized, ordinary) and "TPR@25%" in printed(some)


def test_prompts_of_which_nothing_is_known_are_scored_only(
    found: Detected, options: dict[str, Any], tmp_path: Path
) -> None:
    """With the same scores as in their group; the picture has no ROC curve."""
    given = options | {"prompts": options["ordinary"], "ordinary": None, "limit": 3, "out": str(tmp_path)}
    alone = Detection(**given).measure()
    assert alone.rows["memorized"].isna().all() and len(alone.rows) == 3
    assert alone.rows["prompt"].tolist() == [OTHERS[0], OTHERS[4], OTHERS[7]]  # spread evenly
    known = found.rows.set_index("prompt").loc[[OTHERS[4], OTHERS[7]], [*DETECTORS]]
    assert np.allclose(alone.rows.loc[1:, [*DETECTORS]], known, rtol=1e-4, atol=1e-5)
    assert not alone.judged and alone.judge("fall")["auc"] is None
    assert "no detector is judged" in alone.told() and "highest" in printed(alone)
    with detect_plots.matplotlib.rc_context(detect_plots.look.STYLE):
        titles = [ax.get_title(loc="left") for ax in detect_plots.draw(alone).axes]
    assert titles == list(detect_plots.TITLES.values())
    assert json.loads(alone.write()[1].read_text())["counts"] == {"memorized": 0, "ordinary": 0, "unknown": 3}


def test_a_unet_without_cross_attention_has_no_attention_scores(
    found: Detected, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The others are as they were."""
    monkeypatch.setattr(detect, "cross_attentions", lambda unet: {})
    bare = replace(found.detection, out=str(tmp_path)).measure()
    assert bare.rows[["attention_d", "attention_e"]].isna().all(axis=None)
    assert bare.names == ["first_step", "all_steps", "fall"] and "no attention detectors" in bare.told()
    assert np.allclose(bare.rows[bare.names], found.rows[bare.names], rtol=1e-5)
    with detect_plots.matplotlib.rc_context(detect_plots.look.STYLE):
        assert len(detect_plots.draw(bare).axes) == 4


@pytest.mark.parametrize("broken", [["s1"], ["s0", "s1", "s2", "s7"]])
def test_what_is_not_finite_is_left_out_and_named(
    broken: list[str], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One memorized prompt, or all of them: then no detector can be judged."""

    def damaged(pipe: Any, batch: list[Request], *rest: Any) -> tuple:
        noise, *others = encode(pipe, batch, *rest)
        noise[[request.prompt_id in broken for request in batch]] = torch.nan
        return noise, *others

    monkeypatch.setattr(detect, "encode", damaged)
    some = Detection(out=str(tmp_path), **options).measure()
    assert some.failed() == broken and f"{len(broken)} prompts FAILED" in some.told()
    assert f"{2 * len(broken)} noises FAILED" in some.told() and some.counts()["ordinary"] == 4
    assert some.counts()["memorized"] == 4 - len(broken)
    numbers = json.loads(some.write()[1].read_text())
    assert numbers["failed"] == broken
    assert (numbers["detectors"]["all_steps"]["auc"] is None) == (len(broken) == 4)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"run": None, "model": "run", "ordinary": None}, "give --memorized"),
        ({"prompts": "others"}, "give either"),
        ({"model": ModelOptions(num_inference_steps=2)}, "at least 3 steps"),
        ({"out": __file__}, "is a file"),
        ({"device": "cuda:77"}, "is not here"),
        ({"run": None}, "give --model.pipeline"),
    ],
)
def test_options_that_cannot_work_are_refused(
    wrong: dict[str, Any], message: str, options: dict[str, Any], run: Path
) -> None:
    if wrong.get("model") == "run":
        wrong = wrong | {"model": ModelOptions(pipeline=f"{run}/pipeline")}
    with pytest.raises(ValueError, match=message):
        Detection(**{"out": "x"} | options | wrong)


@pytest.mark.parametrize(
    "text, message", [("sun\nRED square\n", "are memorized ones"), ("\n\n", "holds no prompt")]
)
def test_a_group_without_prompts_is_refused(
    text: str, message: str, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "none.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        Detection(**options | {"ordinary": str(tmp_path / "none.txt"), "out": str(tmp_path)}).measure()
