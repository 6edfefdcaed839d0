"""The command line of `python -m infer`: what is wrong is said in one line, and --help has what is needed."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from callbacks.mitigations.presets import load_mitigation
from infer.__main__ import main
from infer.calibrate.options import Calibration
from infer.calibrate.preset import predict_command
from infer.options import ModelOptions
from tests.conftest import ROOT
from tests.infer.predict.runs import command, refused, rows_of

pytestmark = pytest.mark.usefixtures("one_thread")


# Files of mitigations

WRONG_FILES = {
    "class_path: StaticTransition\ninit_args: {timestp: 3}": "Option 'timestp' is not accepted",
    "class_path: [\n": "no YAML",
}


@pytest.mark.parametrize("content", WRONG_FILES)
def test_what_is_wrong_in_a_mitigations_file(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture, content: str
) -> None:
    """By predict and by compare alike, and where --config names the file."""
    path, config, out = tmp_path / "own.yaml", tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(content)
    config.write_text(f"mitigation: {path}\n")
    given = command(tiny_pipeline, out, 4, "--prompt", "red square")
    assert WRONG_FILES[content] in refused([*given, "--mitigation", str(path)], capsys)
    assert WRONG_FILES[content] in refused([*given, "--config", str(config)], capsys)
    with pytest.raises(ValueError, match=re.escape(WRONG_FILES[content])) as caught:
        load_mitigation(str(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert not out.exists()


def test_a_file_may_lack_what_an_option_gives(predict: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("class_path: Detour\ninit_args: {prompt: old map}\n")
    given = ["--prompt", "red square", "--mitigation", str(tmp_path / "own.yaml")]
    assert list(rows_of(predict(*given, "--mitigation.transition", "stp"))["alternative_prompt"]) == [
        "old map"
    ]


@pytest.mark.parametrize("name", ["scenes/detour_base", "scenes/detour_caption"])
def test_a_presets_files_are_looked_for_from_here(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    name: str,
) -> None:  # fmt: skip
    """The error names the mitigation's option, whether its constructor or a later check misses the file."""
    monkeypatch.chdir(tmp_path)
    given = command(tiny_pipeline, tmp_path / "out", 4, "--prompt", "red square")
    error = refused([*given, "--mitigation", name], capsys)
    option = "base_pipeline" if name.endswith("base") else "captions"
    assert f"the detour's {option}: no " in error and "'data/scenes/" in error
    assert error.endswith(f"(relative paths start from the current folder, {tmp_path})")
    missing = ["--mitigation", "stp", "--model.pipeline", "/nowhere/model"]
    assert refused([*given, *missing], capsys).startswith("no model folder '/nowhere/model'")


# Options


@pytest.mark.parametrize("value", ["-1e0", "-1", "-.1e1"])
def test_a_negative_number_is_no_option(predict: Callable[..., Path], value: str) -> None:
    """Whatever it is written like."""
    out = predict("--prompt", "red square", "--mitigation", "stp", "--mitigation.guidance_before", value)
    assert rows_of(out)["mitigation"][0] == "stp(guidance_before=-1)"


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture) -> None:
    """All at once; a wrong option is 2, as for other programs."""
    assert refused(["predict"], capsys) == "the following arguments are required: out"
    assert refused(["compare"], capsys) == "the following arguments are required: out"
    assert main(["compare", "--nonsense", "1"]) == 2


def test_a_detours_transition_may_be_a_preset(predict: Callable[..., Path], tmp_path: Path) -> None:
    """And it is the preset's, whatever the detour's file held."""
    (tmp_path / "own.yaml").write_text(
        "class_path: Detour\ninit_args:\n  prompt: old map\n"
        "  transition: {class_path: DynamicTransition, init_args: {smoothing: 3}}\n"
    )
    given = ["--prompt", "red square", "--mitigation", str(tmp_path / "own.yaml")]
    out = predict(*given, "--mitigation.transition", "dtp")
    about = yaml.safe_load((out / "config.yaml").read_text())
    assert about["mitigation"] == "own(transition=DynamicTransition)"
    transition = about["mitigations"][0]["init_args"]["transition"]
    assert transition["class_path"].endswith("DynamicTransition")
    assert transition["init_args"]["smoothing"] == 1
    out = predict(*given, "--mitigation.transition=og_stp", "--out", str(tmp_path / "other"))
    about = yaml.safe_load((out / "config.yaml").read_text())
    assert about["mitigations"][0]["init_args"]["transition"]["init_args"]["timestep"] == 650


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("form", [["--config", "FILE"], ["-c", "FILE"], ["--config=FILE"]])
def test_prompts_win_over_the_file_of_a_config(
    predict: Callable[..., Path], tmp_path: Path, form: list[str], first: bool
) -> None:
    """Wherever they stand."""
    (tmp_path / "mine.yaml").write_text("{prompts: nowhere.txt, batch_size: 3}\n")
    config = [word.replace("FILE", str(tmp_path / "mine.yaml")) for word in form]
    prompts = ["--prompt", "red square", "--prompt=old map"]
    out = predict(*(config + prompts if first else prompts + config), steps=1)
    assert list(rows_of(out)["prompt"]) == ["red square", "old map"]


def test_of_two_mitigations_the_last_one_counts(predict: Callable[..., Path]) -> None:
    """With the options after it: those of the first do not count."""
    first = ["--mitigation", "stp", "--mitigation.timestep", "400"]
    out = predict("--prompt", "red square", *first, "--mitigation", "og_stp")
    settings = yaml.safe_load((out / "config.yaml").read_text())["mitigations"][0]["init_args"]
    assert settings["timestep"] == 650


# Help


def test_the_help_of_predict_begins_with_what_is_needed_most(capsys: pytest.CaptureFixture) -> None:
    """It names the presets, and --prompt."""
    assert main(["predict", "--help"]) == 0
    text = capsys.readouterr().out
    parts = ["--out OUT", "--run RUN", "--prompts", "--prompt PROMPT", "--mitigation CONFIG"]
    positions = [text.index(part) for part in [*parts, "--model.pipeline", "--trainer.accelerator"]]
    assert positions == sorted(positions)
    assert all(name in text for name in ("dtp_robust", "og_two_pass", "scenes/detour_caption_orthogonal"))


def test_the_help_of_report(capsys: pytest.CaptureFixture) -> None:
    assert main(["report", "--help"]) == main(["report", "-h"]) == 0
    assert "usage: python -m infer report COMPARISON_FOLDER" in capsys.readouterr().out
    assert refused(["report"], capsys).startswith("usage: ")


@pytest.mark.parametrize("name", ["predict", "compare", "calibrate", "basin"])
def test_print_config(capsys: pytest.CaptureFixture, name: str) -> None:
    """As the help says."""
    with pytest.raises(SystemExit) as stop:
        main([name, "--print_config"])
    assert stop.value.code == 0
    assert "out" in yaml.safe_load(capsys.readouterr().out)


def test_the_command_for_a_calibrated_preset(tiny_pipeline: Path, tmp_path: Path) -> None:
    """It has the model and the schedule of the calibration, and runs."""
    prompts, folder = tmp_path / "memorized prompts.txt", tmp_path / "my folder"
    prompts.write_text("red square\n")
    folder.mkdir()
    calibration = Calibration(
        out=f"{folder}/gated.yaml", mitigation="stp", ordinary="ordinary.txt", memorized=str(prompts),
        model=ModelOptions(pipeline=str(tiny_pipeline), num_inference_steps=6, scheduler="euler"),
        device="cpu",
    )  # fmt: skip
    text = predict_command(calibration)
    assert text == (
        f"python -m infer predict --mitigation '{folder}/gated.yaml' --model.pipeline {tiny_pipeline} "
        f"--model.scheduler euler --model.num_inference_steps 6 --prompts '{prompts}' "
        f"--out '{folder}/gated'"
    )
    Path(calibration.out).write_text((ROOT / "configs/mitigation/stp.yaml").read_text())
    assert main([*shlex.split(text)[3:], "--trainer.accelerator", "cpu"]) == 0
    assert list(rows_of(folder / "gated")["mitigation"]) == ["gated"]
    calibration.memorized = None
    assert "--prompts ordinary.txt" in predict_command(calibration)
