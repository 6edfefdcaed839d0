"""The shipped inference configs and presets: each parses, builds, and names the command that runs it."""

from pathlib import Path

import jsonargparse
import pytest
import yaml

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.presets import load_mitigation
from infer.__main__ import main
from infer.compare.options import Comparison
from tests.conftest import BASE, ROOT

CONFIGS = sorted((ROOT / "configs/infer").glob("*.yaml"))
FOLDER = ROOT / "configs/mitigation"
PRESETS = sorted(FOLDER.rglob("*.yaml"))


def name_of(preset: Path) -> str:
    return str(preset.relative_to(FOLDER).with_suffix(""))


def command(path: Path) -> str:
    return path.read_text().splitlines()[0].removeprefix("# python -m infer ")


@pytest.mark.parametrize("path", [*CONFIGS, *PRESETS], ids=lambda path: path.stem)
def test_the_first_line_is_the_command(path: Path) -> None:
    """On this very file."""
    words = command(path).split()
    assert words[0] in ("predict", "compare", "basin", "detect")
    named = [ROOT / word for word in words if word.endswith(".yaml")]
    assert named and all(config.exists() for config in named)
    assert path in named or words[-2:] == ["--mitigation", name_of(path)]
    if path in CONFIGS:
        own = {"basin": "basin", "detect": "detect", "demo_predict": "predict"}
        assert words[0] == own.get(path.stem, "compare")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_parses(path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its command, with nothing run: what it prints is what it says."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main([*command(path).split(), "--print_config"])
    assert stop.value.code == 0
    printed, said = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(path.read_text())
    for key, value in said.items():
        assert (value.items() <= printed[key].items()) if isinstance(value, dict) else printed[key] == value


def within(said: dict, built: dict) -> bool:
    """Also of what is nested."""
    return all(
        within(value, built[key]) if isinstance(value, dict) else built[key] == value
        for key, value in said.items()
    )


@pytest.mark.parametrize("path", PRESETS, ids=name_of)
def test_a_preset_builds_as_it_says(path: Path) -> None:
    said = yaml.safe_load(path.read_text())
    mitigation = load_mitigation(name_of(path))
    assert isinstance(mitigation, Mitigation)
    identity = mitigation.identity()
    assert identity["class_path"] == said["class_path"]
    assert within(said.get("init_args", {}), identity["init_args"])


def test_the_papers_presets_are_the_papers() -> None:
    """Jain et al.: STP at 500; opposite guidance at -2 until 650, and at -7.5 with the dynamic transition."""
    expected = {"stp": (500, 0.0), "og_stp": (650, -2.0), "dtp": (None, 0.0), "og_dtp": (None, -7.5),
                "og_two_pass": (None, -7.5)}  # fmt: skip
    for name, (timestep, before) in expected.items():
        mitigation = load_mitigation(name)
        assert (getattr(mitigation, "timestep", None), mitigation.guidance_before) == (timestep, before)


def test_the_demo_compares_what_the_demo_trains() -> None:
    """The training config's folder is the comparison's run; the bundled CLIP is there."""
    demo = yaml.safe_load((ROOT / "configs/infer/demo.yaml").read_text())
    trained = yaml.safe_load((ROOT / "configs/train/demo.yaml").read_text())
    assert demo["run"] == trained["out"] and (ROOT / trained["model"]["pipeline"]) == BASE
    assert (ROOT / demo["clip"] / "config.json").exists()
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(Comparison, None)
    assert set(demo) <= set(vars(parser.get_defaults()))
