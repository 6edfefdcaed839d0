"""Sweeps of a mitigation's options, and published figures beside ours."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from callbacks.mitigations.presets import label, load_mitigations
from data.arguments import with_sweep
from infer.__main__ import main
from infer.compare.options import Comparison
from infer.options import ModelOptions

pytestmark = pytest.mark.usefixtures("one_thread")


def planned(**options) -> Comparison:
    """A comparison with the runs of these options, which reads no files."""
    comparison = object.__new__(Comparison)
    comparison.model, comparison.base_model, comparison.published = ModelOptions(pipeline="model"), None, {}
    comparison.mitigations, comparison.sweep = ["none"], {}
    for name, value in options.items():
        setattr(comparison, name, value)

    def load(preset: str, options: dict) -> tuple:
        mitigations = load_mitigations(preset, options)
        return label(mitigations, preset), mitigations

    comparison.plan(load)
    return comparison


def test_a_sweep_is_every_combination() -> None:
    """One run each, called by its options; a line along the first for each choice of the others."""
    sweep = {
        "scenes/og_stp": {"timestep": [500, 700], "guidance_before": [-1.0, -3.5]},
        "dtp": {"patience": [2]},
    }
    comparison = planned(sweep=sweep)
    assert [job.label for job in comparison.jobs] == [
        "none", "scenes/og_stp(timestep=500, guidance_before=-1)",
        "scenes/og_stp(timestep=500, guidance_before=-3.5)",
        "scenes/og_stp(timestep=700, guidance_before=-1)",
        "scenes/og_stp(timestep=700, guidance_before=-3.5)", "dtp(patience=2)",
    ]  # fmt: skip
    assert comparison.jobs[2].options == {"timestep": 500, "guidance_before": -3.5}
    lines = {line["preset"]: line for line in comparison.sweeps()}
    assert list(lines) == ["scenes/og_stp guidance_before=-1.0", "scenes/og_stp guidance_before=-3.5", "dtp"]
    line = lines["scenes/og_stp guidance_before=-3.5"]
    assert line["option"] == "timestep" and line["points"] == [
        {"value": t, "mitigation": f"scenes/og_stp(timestep={t}, guidance_before=-3.5)"} for t in (500, 700)
    ]


def test_several_presets_are_one_run_and_the_sweep_is_the_last_ones() -> None:
    comparison = planned(
        mitigations=["somepalli_word+dtp"], sweep={"han_batch+og_stp": {"guidance_before": [-1.0]}}
    )
    assert [job.label for job in comparison.jobs] == [
        "somepalli_word+dtp", "han_batch+og_stp(guidance_before=-1)",
    ]  # fmt: skip
    assert [rule.guidance_before for rule in comparison.jobs[1].mitigations] == [0.0, -1.0]


def test_a_point_that_stands_among_the_mitigations_runs_once() -> None:
    """And it is both a mitigation and a point of the sweep's line."""
    comparison = planned(mitigations=["none", "stp", "none"], sweep={"stp": {"timestep": [500, 600]}})
    assert [job.label for job in comparison.jobs] == ["none", "stp", "stp(timestep=600)"]
    assert [point["mitigation"] for point in comparison.sweeps()[0]["points"]] == ["stp", "stp(timestep=600)"]
    assert [job.label for job in comparison.jobs if job.single] == ["none", "stp"]


def test_two_files_of_one_label_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "own.yaml" for folder in "ab"]
    for timestep, path in zip((300, 400), paths, strict=True):
        path.parent.mkdir()
        path.write_text(f"class_path: StaticTransition\ninit_args: {{timestep: {timestep}}}\n")
    with pytest.raises(ValueError, match="two runs are called 'own': rename a mitigation's file"):
        planned(mitigations=[str(path) for path in paths])


def test_the_base_model_may_be_left_out_and_has_the_fits_revision(
    options: dict[str, str], tmp_path: Path
) -> None:
    run = shutil.copytree(options["--run"], tmp_path / "run")
    given = {"out": "x", "run": str(run), "clip": options["--clip"]}
    assert Comparison(**given, base_pipeline=None).base_model is None
    assert Comparison(**given, base_pipeline="none").base_model is None
    provenance = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps(provenance | {"revision": "0" * 40}))
    base = Comparison(**given, model=ModelOptions(revision="1" * 40)).base_model
    assert base.revision == "0" * 40 and base.pipeline == provenance["pipeline"]


def test_a_sweep_on_the_command_line() -> None:
    """Options of several presets, in one mapping; a file's name may hold dots."""
    args = ["--sweep", "stp.timestep=400,500", "--seed", "1", "--sweep=dir.x/own.yaml.gate=null,0.5",
            "--sweep", "stp.guidance_before=-1"]  # fmt: skip
    changed = with_sweep(args)
    assert changed[1:3] == ["--seed", "1"] and changed[-1].startswith("--sweep=")
    assert yaml.safe_load(changed[-1].removeprefix("--sweep=")) == {
        "stp": {"timestep": [400, 500], "guidance_before": [-1]}, "dir.x/own.yaml": {"gate": [None, 0.5]},
    }  # fmt: skip
    assert with_sweep(["--sweep", "{stp: {timestep: [1]}}"]) == ["--sweep={stp: {timestep: [1]}}"]


@pytest.fixture(scope="module")
def sweep(compare_args: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A sweep of the static transition beside none and the base model."""
    out = tmp_path_factory.mktemp("sweep") / "finished"
    config = out.parent / "config.yaml"
    config.write_text(
        "published: {none: {fid: 16.84, similarity_top_p95: 0.65}, stp(timestep=300): {fid: 19.8}}\n"
    )
    changes = ["--config", str(config), "--mitigations", "none", "--sweep", "stp.timestep=300,600"]
    assert main([*compare_args, *changes, "--out", str(out)]) == 0
    return out, pd.read_parquet(out / "comparison.parquet").set_index("mitigation")


def test_each_point_is_a_run_of_its_own(sweep: tuple[Path, pd.DataFrame]) -> None:
    out, table = sweep
    assert list(table.index) == ["none", "stp(timestep=300)", "stp(timestep=600)", "base_model"]
    assert table["transition_timestep_median"].tolist()[1:3] == [251, 501]
    for name, timestep in {"stp(timestep=300)": 300, "stp(timestep=600)": 600}.items():
        config = yaml.safe_load((out / name / "config.yaml").read_text())
        assert config["mitigation"] == name and config["mitigations"][0]["init_args"]["timestep"] == timestep
    sweeps = json.loads((out / "comparison.json").read_text())["sweeps"]
    assert sweeps == [{"preset": "stp", "option": "timestep", "points": [
        {"value": 300, "mitigation": "stp(timestep=300)"}, {"value": 600, "mitigation": "stp(timestep=600)"},
    ]}]  # fmt: skip


def test_published_figures_stand_in_columns_of_their_own(sweep: tuple[Path, pd.DataFrame]) -> None:
    out, table = sweep
    assert table["fid_published"].fillna(-1).tolist() == [16.84, 19.8, -1, -1]
    assert table["similarity_top_p95_published"].fillna(-1).tolist() == [0.65, -1, -1, -1]
    page = (out / "report.html").read_text()
    assert "16.8" in page and "19.8" in page
