"""What `python -m infer predict` runs with: solvers, models and mitigations as its options choose them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from infer.denoising.sampling import warn_once
from infer.models.pipeline import load_pipeline
from tests.conftest import ROOT
from tests.infer.models.model_files import kohya_lora
from tests.infer.models.single_file import write_single_file
from tests.infer.predict.runs import assert_stock, captions, pixels, rows_of, summary_of

pytestmark = pytest.mark.usefixtures("one_thread")


# Solvers and models


def test_a_run_with_euler_steps(predict: Callable[..., Path], tiny_pipeline: Path) -> None:
    pipe = load_pipeline(str(tiny_pipeline))
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    out = predict("--prompt", "red square", "--prompt", "old map", "--model.scheduler", "euler")
    assert_stock(out, pipe)
    assert list(pd.read_parquet(out / "traces.parquet")["timestep"][:4]) == [751, 501, 251, 1]


def test_the_timestep_spacing_can_be_chosen(predict: Callable[..., Path], tiny_pipeline: Path) -> None:
    pipe = load_pipeline(str(tiny_pipeline))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    out = predict("--prompt", "red square", "--model.timestep_spacing", "trailing")
    assert_stock(out, pipe)
    assert list(pd.read_parquet(out / "traces.parquet")["timestep"]) == [999, 749, 499, 249]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["timestep_spacing"] == "trailing" and config["scheduler"] == "own"


def test_a_negative_prompt_without_guidance_is_named_once(
    predict: Callable[..., Path], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Where no rule brings guidance back, only the conditional prediction is used."""
    warn_once.cache_clear()
    given = ("--prompt", "red square", "--prompt", "old map", "--batch_size", "1")
    given += ("--model.guidance_scale", "1", "--model.negative_prompt", "blue circle")
    predict(*given, "--mitigation", "stp", "--out", str(tmp_path / "stp"))
    assert "negative_prompt" not in caplog.text
    predict(*given)
    assert caplog.text.count("negative_prompt has no effect: guidance_scale is 1") == 1


def test_a_lora(predict: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path) -> None:
    """The images are those of the weights with half of it added."""
    pipe = load_pipeline(str(tiny_pipeline))
    added = kohya_lora(pipe, tmp_path / "style.safetensors", alpha=0.2)
    for key, change in added.items():
        part, name = key.split(".", 1)
        getattr(pipe, part).get_parameter(name).data += 0.5 * change
    lora = ["--model.lora", str(tmp_path / "style.safetensors"), "--model.lora_scale", "0.5"]
    out = predict("--prompt", "red square", *lora)
    assert_stock(out, pipe)
    plain = predict("--prompt", "red square", "--out", str(tmp_path / "plain"))
    image, other = (next(iter(pixels(folder).values())) for folder in (out, plain))
    assert np.abs(image - other).max() > 3
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["lora"] == lora[1] and config["lora_scale"] == 0.5 and config["lora_sha256"]


def test_a_single_file(predict: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path) -> None:
    pipe = load_pipeline(str(tiny_pipeline))
    path = write_single_file(pipe, tmp_path / "model.safetensors")
    model = ["--model.pipeline", str(path), "--model.single_file_config", str(tiny_pipeline)]
    out = predict("--prompt", "red square", *model, "--mitigation", "none")
    assert_stock(out, pipe)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["pipeline"] == str(path) and config["pipeline_sha256"]


# Mitigations


def test_a_mitigation_that_never_fires_says_so(
    predict: Callable[..., Path], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    never = ["--mitigation", "DynamicTransition", "--mitigation.prominence", "0.99"]
    out = predict("--prompts", captions(tmp_path), *never, steps=6)
    summary = summary_of(out)
    assert (summary["fired"], summary["never_fired"], summary["transition_timestep_median"]) == (0, 4, None)
    assert "; the transition came for 0, and NEVER for 4: they kept" in capsys.readouterr().out
    assert rows_of(out)["transition_timestep"].isna().all()
    assert set(pd.read_parquet(out / "traces.parquet")["guidance_scale"]) == {0}


def test_some_fire_and_some_never_do(
    predict: Callable[..., Path], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """Both are counted."""
    rule = ["--mitigation", "DynamicTransition", "--mitigation.watch", "model_output"]
    rule += ["--mitigation.prominence", "0.05"]
    out = predict("--prompts", captions(tmp_path), *rule, "--samples_per_prompt", "4", steps=8)
    fired = int(rows_of(out)["transition_timestep"].notna().sum())
    assert 0 < fired < 16
    summary = summary_of(out)
    assert (summary["fired"], summary["never_fired"]) == (fired, 16 - fired)
    printed = capsys.readouterr().out
    assert f"the transition came for {fired}, median t = " in printed and f"NEVER for {16 - fired}" in printed


@pytest.mark.parametrize("before", [-7.5, 0.0])
def test_two_passes_cost_both(predict: Callable[..., Path], tmp_path: Path, before: float) -> None:
    """The first at one scale throughout, the second at it until the transition: traces hold the second."""
    options = ["--mitigation", "og_two_pass", f"--mitigation.guidance_before={before}"]
    out = predict("--prompts", captions(tmp_path), *options, steps=8)
    traces = pd.read_parquet(out / "traces.parquet")
    waiting = 1 if before == 0 else 2
    for row in rows_of(out).itertuples():
        trace = traces[traces["prompt_id"] == row.prompt_id]
        first = list(trace["timestep"]).index(row.transition_timestep)
        assert list(trace["guidance_scale"]) == [before] * first + [7.5] * (8 - first)
        assert row.nfe == 8 * waiting + first * waiting + 2 * (8 - first)
    assert summary_of(out)["nfe_mean"] == rows_of(out)["nfe"].mean()
    assert summary_of(out)["watched"] == "latents" and summary_of(out)["never_fired"] == 0


def test_a_preset_is_itself_whatever_the_config_holds(predict: Callable[..., Path], tmp_path: Path) -> None:
    """No option of a mitigation of the same class in --config stays."""
    config = tmp_path / "config.yaml"
    config.write_text("mitigation: {class_path: DynamicTransition, init_args: {smoothing: 3, gate: 0.5}}\n")
    out = predict("--config", str(config), "--prompt", "red square", "--mitigation", "dtp")
    settings = yaml.safe_load((out / "config.yaml").read_text())["mitigations"][0]["init_args"]
    assert settings["smoothing"] == 1 and settings["gate"] is None


def test_the_label_is_that_of_a_configs_preset(predict: Callable[..., Path], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"mitigation: {ROOT / 'configs/mitigation/stp.yaml'}\n")
    out = predict("--config", str(config), "--prompt", "red square", "--mitigation.guidance_before", "-2")
    assert list(rows_of(out)["mitigation"]) == ["stp(guidance_before=-2)"]
