"""`python -m infer detect` in miniature: its files, its numbers computed independently, and its refusals."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from data.prompts import load_prompts
from infer import plotting
from infer.denoising import sampling
from infer.denoising.curves import Watch
from infer.denoising.noise import sample_seed
from infer.denoising.requests import Request
from infer.denoising.sampling import encode, make_images
from infer.detect import measure as measure_module
from infer.detect import plots
from infer.detect.command import detect
from infer.detect.detectors import DETECTORS, fall
from infer.detect.measure import measure
from infer.detect.options import Detection
from infer.detect.ranking import ranking
from infer.detect.summary import Detected
from infer.metrics.roc import auc
from infer.options import ModelOptions
from tests.infer.training_runs import save_model, save_training_run

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, STEPS, SCALE = torch.device("cpu"), 14, 5.0
OTHERS = ["old map", "Red  square", "big sun", "blue circle", "tea cup", "Big Sun", "old tea", "cat map"]
KEPT = ["big sun", "tea cup", "old tea", "cat map"]  # without memorized and repeated ones


@pytest.fixture(scope="module")
def options(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("training")
    (folder / "others.txt").write_text("\n".join(OTHERS))
    return {
        "run": str(save_training_run(folder, tiny_shards)), "ordinary": str(folder / "others.txt"),
        "model": ModelOptions(num_inference_steps=STEPS, guidance_scale=SCALE),
        "samples_per_prompt": 2, "device": "cpu", "batch_size": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def detected(options: dict[str, Any], one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Detected:
    return measure(Detection(out=str(tmp_path_factory.mktemp("out") / "new"), **options))


def printed(detected: Detected) -> str:
    Console(width=120, file=(out := io.StringIO())).print(detected.table())
    return out.getvalue()


def titles(detected: Detected) -> list[str]:
    with matplotlib.rc_context(plotting.FILE_STYLE):
        return [ax.get_title(loc="left") for ax in plots.draw(detected).axes]


def test_the_groups_are_the_runs_prompts_and_others_that_say_something_else(detected: Detected) -> None:
    rows = detected.rows
    assert set(rows["prompt_id"][rows["memorized"]]) == {"s0", "s1", "s2", "s3"}
    assert rows["prompt"][~rows["memorized"]].tolist() == KEPT
    assert detected.left_out == 4 and (rows["samples"] == 2).all() and detected.counts()["unknown"] == 0


def test_the_scores_are_those_of_runs_of_the_same_noise(detected: Detected) -> None:
    """From the traces of images with guidance and without, in batches of another size."""
    pipe = detected.options.model.load(CPU)
    requests = [
        Request(row.prompt_id, n, row.prompt, sample_seed(0, row.prompt_id, n))
        for row in detected.rows.itertuples()
        for n in range(2)
    ]
    _, guided = make_images(pipe, CPU, requests, 16, SCALE, STEPS)
    curves = guided.difference_rms.double().numpy().reshape(len(detected.rows), 2, STEPS)
    assert np.allclose(detected.rows["first_step"], curves[:, :, 0].mean(1), rtol=1e-4)
    assert np.allclose(detected.rows["all_steps"], curves.mean((1, 2)), rtol=1e-4)
    make_images(pipe, CPU, requests, 16, 0.0, STEPS, rules=[watch := Watch()])
    timesteps = pipe.scheduler.timesteps.tolist()
    depth, fired = (each.reshape(-1, 2) for each in fall(watch.curves()["epsilon"], timesteps))
    assert np.allclose(detected.rows["fall"], depth.mean(1), atol=1e-4) and depth.max() > 0.01
    assert np.allclose(detected.rows["fired_timestep"], pd.DataFrame(fired).mean(axis=1), equal_nan=True)
    assert detected.rows[[*DETECTORS]].std().min() > 0
    norm = detected.rows["anisotropy"] - detected.rows["alignment"]  # of the difference at the first step
    assert np.allclose(norm, detected.rows["first_step"] * np.sqrt(4 * 8 * 8), rtol=1e-4)


def test_the_files_hold_the_scores_and_what_they_are_worth(detected: Detected) -> None:
    paths = [*detected.write(), *plots.save_figure(detected)]
    assert [path.name for path in paths] == [f"detection.{s}" for s in ("parquet", "json", "png", "svg")]
    assert sorted(Path(detected.options.out).iterdir()) == sorted(paths)  # no half-written file stays
    rows, numbers = pd.read_parquet(paths[0]), json.loads(paths[1].read_text())
    assert np.array_equal(rows[[*DETECTORS]], detected.rows[[*DETECTORS]])
    assert numbers["detectors"].keys() == DETECTORS.keys() == set(detected.names)
    for name, judged in numbers["detectors"].items():
        memorized, ordinary = rows[name][rows["memorized"]], rows[name][~rows["memorized"]]
        pairs = np.subtract.outer(memorized.to_numpy(), ordinary.to_numpy())
        assert judged["auc"] == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
        assert judged["tpr_at_fpr"] == {"0.01": None, "0.03": None, "0.1": None}
        assert judged["threshold"] is None
    assert "TPR at 1 % FPR needs at least 100 ordinary prompts, there are 4" in numbers["notes"]
    assert numbers["left_out"] == 4 and numbers["failed"] == []
    assert min(numbers["seconds_per_prompt"].values()) > 0 and len(numbers["seconds_per_prompt"]) == 4
    lines = "\n".join(detected.summary_lines())
    assert "ordinary prompts were left out" in lines and "seconds per prompt" in lines
    assert all(name in printed(detected) for name in DETECTORS)


def test_a_rate_that_can_be_shown_is_reported(detected: Detected) -> None:
    """A quarter of four ordinary prompts is one: the threshold is the second highest score."""
    some = replace(detected, options=replace(detected.options, false_positive_rate=0.25))
    judged = some.judge("all_steps")
    memorized, ordinary = some.scores("all_steps", "memorized"), some.scores("all_steps", "ordinary")
    assert judged["threshold"] == sorted(ordinary)[-2]
    assert judged["tpr_at_fpr"]["0.25"] == (memorized > judged["threshold"]).mean()
    assert judged["auc"] == auc(memorized, ordinary) and "TPR@25%" in printed(some)
    low, high = judged["tpr_interval_at_fpr"]["0.25"]
    assert 0 <= low <= judged["tpr_at_fpr"]["0.25"] <= high <= 1


def test_the_cost_is_that_of_a_detector_alone(detected: Detected) -> None:
    """For two noises: UNet rows, and those that are differentiated."""
    costs = {name: tuple(detected.cost(name).values()) for name in DETECTORS}
    assert costs["first_step"] == (4, 0) and costs["all_steps"] == (2 * 2 * STEPS, 0)
    assert costs["dsm_01"] == (6, 0) and costs["dsm_12"] == (10, 0) and costs["anisotropy"] == (8, 0)
    assert costs["agreement"] == (32, 0)
    assert costs["sharpness"] == (8, 4) and costs["hessian"] == (4, 4)
    assert "8 (4)" in printed(detected)


def test_prompts_without_a_label_are_only_scored(
    detected: Detected, options: dict[str, Any], tmp_path: Path
) -> None:
    """With the same scores as in their group; the figure has no ROC curve, and there are no thresholds."""
    given = options | {"prompts": options["ordinary"], "ordinary": None, "limit": 3, "out": str(tmp_path)}
    alone = measure(Detection(**given))
    assert alone.rows["memorized"].isna().all()
    assert alone.rows["prompt"].tolist() == [OTHERS[0], OTHERS[4], OTHERS[7]]  # spread evenly
    known = detected.rows.set_index("prompt").loc[[OTHERS[4], OTHERS[7]], [*DETECTORS]]
    assert np.allclose(alone.rows.loc[1:, [*DETECTORS]], known, rtol=1e-3, atol=1e-5)
    assert not alone.judged and alone.judge("fall")["auc"] is None
    assert "no thresholds" in alone.notes()[-1] and "highest" in printed(alone)
    assert titles(alone) == [detector.title for detector in DETECTORS.values()]
    assert alone.numbers()["counts"] == {"memorized": 0, "ordinary": 0, "unknown": 3}
    ranked = ranking(alone)
    assert ranked["first_step"].is_monotonic_decreasing and not {"flags", "ordinary_above"} & set(ranked)


def test_unknown_prompts_are_ranked_against_ordinary_ones(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By the detectors that are asked for; ordinary prompts among the unknown ones are left out.

    A prompt is no formula in the CSV, nor markup in the terminal, and the CSV is a file of prompts.
    """
    unknown_prompts = ["old map", "=sun[/b]", "big sun", "green leaf"]
    (tmp_path / "unknown.txt").write_text("\n".join(unknown_prompts))
    unknown = str(tmp_path / "unknown.txt")
    detect([
        "--run", options["run"], "--ordinary", options["ordinary"], "--prompts", unknown, "--device", "cpu",
        "--out", str(tmp_path), "--detectors", "[dsm_12,first_step]", "--rank_by", "dsm_12",
        "--false_positive_rate", "0.25", "--model.num_inference_steps", "4", "--batch_size", "4",
    ])  # fmt: skip
    ranked, numbers = (
        pd.read_csv(tmp_path / "ranking.csv"),
        json.loads((tmp_path / "detection.json").read_text()),
    )
    rows = pd.read_parquet(tmp_path / "detection.parquet")
    assert sorted(ranked["prompt"]) == ["'=sun[/b]", "big sun", "green leaf", "old map"]
    assert {prompt.text for prompt in load_prompts(str(tmp_path / "ranking.csv"))} == set(unknown_prompts)
    assert "fall" not in rows
    ordinary = rows[~rows["memorized"].fillna(True)]
    assert sorted(ordinary["prompt"]) == ["Red  square", "blue circle", "cat map", "old tea", "tea cup"]
    assert ranked["rank"].tolist() == [1, 2, 3, 4] and ranked["dsm_12"].is_monotonic_decreasing
    flags = 0
    for name in ("first_step", "dsm_12"):
        cut = numbers["detectors"][name]["threshold"]
        assert cut == sorted(ordinary[name])[-2]
        flags += (ranked[name] > cut).astype(int)
    assert ranked["flags"].tolist() == flags.tolist()
    above = [(ordinary["dsm_12"] >= score).mean() for score in ranked["dsm_12"]]
    assert ranked["ordinary_above"].tolist() == pytest.approx(above)
    assert list(numbers["seconds_per_prompt"]) == ["guided run"]
    printed = capsys.readouterr().out
    assert "flags of 2" in printed and "=sun[/b]" in printed and "ranking.csv" in printed


def test_a_model_with_zero_terminal_snr_and_no_cross_attention(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """d_t is 0 at the first step for every prompt: the score is of the second. There is no attention."""
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    model = save_model(tmp_path / "model", **config)
    monkeypatch.setattr(measure_module, "cross_attentions", lambda unet: {})
    words = ["--model.pipeline", str(model), "--model.num_inference_steps", "4", "--device", "cpu"]
    detect([*words, "--prompts", options["ordinary"], "--out", str(tmp_path / "out")])
    rows = pd.read_parquet(tmp_path / "out" / "detection.parquet")
    assert rows["first_step"].min() > 0 and rows["first_step"].std() > 0
    assert rows[["attention_d", "attention_e"]].isna().all(axis=None)
    assert "no attention detectors" in capsys.readouterr().out


@pytest.mark.parametrize("broken", [["s1"], ["s0", "s1", "s2", "s3"]])
def test_what_is_not_finite_is_left_out_and_named(
    broken: list[str], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One memorized prompt, or all of them: then no detector can be judged."""

    def damaged(pipe: Any, batch: list[Request], *rest: Any) -> tuple:
        noise, *others = encode(pipe, batch, *rest)
        noise[[request.prompt_id in broken for request in batch]] = torch.nan
        return noise, *others

    monkeypatch.setattr(sampling, "encode", damaged)
    few = ModelOptions(num_inference_steps=4, guidance_scale=SCALE)
    some = measure(Detection(**options | {"out": str(tmp_path), "model": few}))
    notes = "\n".join(some.notes())
    assert some.failed() == broken and f"{len(broken)} prompts FAILED" in notes
    assert f"{2 * len(broken)} noises FAILED" in notes and some.counts()["ordinary"] == 4
    assert some.counts()["memorized"] == 4 - len(broken)
    assert (some.numbers()["detectors"]["all_steps"]["auc"] is None) == (len(broken) == 4)


@pytest.mark.parametrize("change, message", [
    ({"run": None, "ordinary": None}, "give --model.pipeline"),
    ({"prompts": "others", "detectors": ["fall"], "rank_by": "first_step"}, "is not among --detectors fall"),
    ({"model": ModelOptions(num_inference_steps=2)}, "at least 3 steps"), ({"out": __file__}, "is a file"),
])  # fmt: skip
def test_options_that_cannot_work_are_refused(
    change: dict[str, Any], message: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        Detection(**{"out": "x"} | options | change)


@pytest.mark.parametrize("change, option", [
    ({"rank_by": "fall"}, "--rank_by"), ({"detectors": ["fall"], "attention_layer": 2}, "--attention_layer"),
])  # fmt: skip
def test_an_option_without_effect_is_one_warning(
    change: dict[str, Any], option: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    Detection(out="x", **options | change)
    (message,) = caplog.messages
    assert message.startswith(f"{option} has no effect")


@pytest.mark.parametrize(
    "text, message", [("old map\nRED square\n", "are memorized"), ("\n", "holds no prompt")]
)
def test_a_group_without_prompts_is_refused(
    text: str, message: str, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "none.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        Detection(**options | {"ordinary": str(tmp_path / "none.txt"), "out": str(tmp_path)}).groups()
