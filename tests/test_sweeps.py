"""The sweeps of configs/sweeps: what `wandb agent` would start parses, and `compare` has the same grid."""

import re
import shlex
import subprocess
from itertools import product
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import infer.__main__
import train.__main__
from callbacks.mitigations.presets import label, load_mitigations
from data.arguments import values_of, with_sweep
from tests.conftest import ROOT
from tests.infer.compare.test_sweep import planned

SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
MAINS = {"train": train.__main__.main, "infer": infer.__main__.main}


def points(sweep: dict) -> list[dict]:
    """Every combination of a grid's values."""
    values = [option["values"] for option in sweep["parameters"].values()]
    return [dict(zip(sweep["parameters"], chosen, strict=True)) for chosen in product(*values)]


@pytest.fixture
def interpreter(tmp_path: Path) -> str:
    """Prints its arguments, a line each."""
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    path.chmod(0o755)
    return str(path)


def started(sweep: dict, point: dict, interpreter: str) -> list[str]:
    """The arguments with which the agent's command starts Python, in the run `abc123`.

    W&B's own functions make the flags and fill in the macros.
    """
    flags = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
    macros = {"${interpreter}": [interpreter], "${args}": flags["args"]}
    words = [new for word in create_sweep_command(sweep["command"]) for new in macros.get(word, [word])]
    env = {"WANDB_RUN_ID": "abc123"}
    return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_command_of_the_grid_is_understood(
    path: Path, interpreter: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And has the point's values, W&B, and a folder of its own."""
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(path.read_text())
    assert path.read_text().startswith(f"# wandb sweep {path.relative_to(ROOT)}\n")
    for point in points(sweep):
        module, program, *args = started(sweep, point, interpreter)
        assert module == "-m"
        with pytest.raises(SystemExit) as stop:
            MAINS[program]([*args, "--print_config"])
        out, err = capsys.readouterr()
        assert stop.value.code == 0, err
        config = yaml.safe_load(out)
        assert config["out"] == f"outputs/sweeps/{path.stem}/abc123" and config["wandb"] == "online"
        for name, value in point.items():
            found = config
            first, *others = name.split(".")
            for key in [first, *(["init_args"] if first == "mitigation" else []), *others]:
                found = found[key]
            assert found == value, name


@pytest.mark.parametrize("stem", ["og_stp", "transition"])
def test_compare_has_the_same_grid(stem: str, interpreter: str) -> None:
    """By the command in the file's comment: the same mitigations, called by the same labels."""
    path = ROOT / f"configs/sweeps/{stem}.yaml"
    sweep, text = yaml.safe_load(path.read_text()), path.read_text()
    comment = re.search(r"#   python -m infer compare (.*?)\n(?!#   )", text, re.DOTALL)[1]
    [given] = values_of(with_sweep(shlex.split(comment.replace("\\\n#", ""))), "--sweep")[-1:]
    comparison = planned(mitigations=[], sweep=yaml.safe_load(given))
    labels = []
    for point in points(sweep):
        args = started(sweep, point, interpreter)
        preset = values_of(args, "--mitigation")[0]
        options = {name.removeprefix("mitigation."): value for name, value in point.items()}
        labels.append(label(load_mitigations(preset, options), preset))
    assert labels == [job.label for job in comparison.jobs]
