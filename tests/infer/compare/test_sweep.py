"""Sweeps of a mitigation's options, and published figures beside ours."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from data.arguments import with_sweep
from infer.__main__ import main
from infer.compare.options import Comparison
from infer.options import ModelOptions
from tests.infer.compare import made_runs as comparing

pytestmark = pytest.mark.usefixtures("one_thread")
arguments = comparing.arguments  # a fixture


def compared(**options) -> Comparison:
    """Without a run: of files that are there."""
    made = object.__new__(Comparison)
    made.model, made.base_pipeline = ModelOptions(pipeline="model"), None
    made.mitigations, made.sweep = ["none"], {}
    for name, value in options.items():
        setattr(made, name, value)
    return made


def test_a_grid_is_every_combination() -> None:
    """One run each, named by its options; a line along the first for each choice of the others."""
    sweep = {
        "emoji/og_stp": {"timestep": [500, 700], "guidance_before": [-1.0, -2.0]},
        "dtp": {"patience": [2]},
    }
    made = compared(sweep=sweep)
    assert [job.name for job in made.jobs()] == [
        "none", "og_stp-timestep500-guidance_before-1.0", "og_stp-timestep500-guidance_before-2.0",
        "og_stp-timestep700-guidance_before-1.0", "og_stp-timestep700-guidance_before-2.0", "dtp-patience2",
    ]  # fmt: skip
    assert made.jobs()[2].options == {"timestep": 500, "guidance_before": -2.0}
    lines = {line["preset"]: line for line in made.sweeps()}
    assert list(lines) == ["og_stp guidance_before=-1.0", "og_stp guidance_before=-2.0", "dtp"]
    line = lines["og_stp guidance_before=-2.0"]
    assert line["option"] == "timestep" and line["points"] == [
        {"value": t, "mitigation": f"og_stp-timestep{t}-guidance_before-2.0"} for t in (500, 700)
    ]


def test_a_grid_on_the_command_line() -> None:
    """Options of several presets, in one mapping; a file's name may hold dots."""
    args = ["--sweep", "stp.timestep=400,500", "--seed", "1", "--sweep=dir.x/own.yaml.gate=null,0.5",
            "--sweep", "stp.guidance_before=-1"]  # fmt: skip
    made = with_sweep(args)
    assert made[1:3] == ["--seed", "1"] and made[-1].startswith("--sweep=")
    assert yaml.safe_load(made[-1].removeprefix("--sweep=")) == {
        "stp": {"timestep": [400, 500], "guidance_before": [-1]}, "dir.x/own.yaml": {"gate": [None, 0.5]},
    }  # fmt: skip
    assert with_sweep(["--sweep", "{stp: {timestep: [1]}}"]) == ["--sweep={stp: {timestep: [1]}}"]


@pytest.fixture(scope="module")
def finished(
    arguments: list[str], one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, pd.DataFrame]:
    """A sweep of the static transition beside none; the base model's row comes of itself."""
    out = tmp_path_factory.mktemp("grid") / "finished"
    config = out.parent / "config.yaml"
    config.write_text(
        "published: {none: {fid: 16.84, similarity_top_p95: 0.65}, stp-timestep300: {fid: 19.8}}\n"
    )
    options = ["--config", str(config), *arguments[1:], "--mitigations", "none", "--out", str(out)]
    assert main(["compare", *options, "--sweep", "stp.timestep=300,600"]) == 0
    return out, pd.read_parquet(out / "comparison.parquet").set_index("mitigation")


def test_each_point_is_a_run_of_its_own(finished: tuple[Path, pd.DataFrame]) -> None:
    out, table = finished
    assert list(table.index) == ["none", "stp-timestep300", "stp-timestep600", "base_model"]
    assert table["transition_timestep_median"].tolist()[1:3] == [251, 501]
    for name, timestep in {"stp-timestep300": 300, "stp-timestep600": 600}.items():
        config = yaml.safe_load((out / name / "config.yaml").read_text())
        assert config["mitigation"] == name and config["mitigations"][0]["init_args"]["timestep"] == timestep
    sweeps = json.loads((out / "comparison.json").read_text())["sweeps"]
    assert sweeps == [{"preset": "stp", "option": "timestep", "points": [
        {"value": 300, "mitigation": "stp-timestep300"}, {"value": 600, "mitigation": "stp-timestep600"},
    ]}]  # fmt: skip


def test_published_figures_stand_in_columns_of_their_own(finished: tuple[Path, pd.DataFrame]) -> None:
    out, table = finished
    assert table["fid_published"].fillna(-1).tolist() == [16.84, 19.8, -1, -1]
    assert table["similarity_top_p95_published"].fillna(-1).tolist() == [0.65, -1, -1, -1]
    page = (out / "report.html").read_text()
    assert "16.8" in page and "19.8" in page


@pytest.mark.parametrize(
    "options, message",
    [
        (["--sweep", "stp.timestep"], "'stp.timestep': give it as PRESET.OPTION=VALUE,VALUE"),
        (["--sweep", "stp.timstep=400"], "timstep"),
        (["--sweep", "spt.timestep=400"], "no mitigation preset 'spt'"),
        (["--sweep", "stp.timestep=-400"], "must not be negative"),
        (["--sweep", "stp.timestep=400,400"], "named twice"),
        (["--sweep", "{stp: {timestep: []}}"], "nothing to sweep for 'stp'"),
        (["--sweep", "stp.timestep=a/b"], "'stp-timestepa/b' cannot name a folder"),
        (["--sweep", "stp.timestep=999"], "never hold guidance back"),
        (["--published", "{spt: {fid: 3}}"], "published figures of ['spt'], which are none of ['none'"),
        (["--published", "{none: {fdi: 3}}"], "published: no column 'fdi'; there are similarity_own_mean"),
    ],
)
def test_a_wrong_grid_is_one_clear_error(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    """Before anything is made."""
    asked = [*arguments, "--mitigations", "none", *options, "--out", str(tmp_path / "out")]
    assert main(asked) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
