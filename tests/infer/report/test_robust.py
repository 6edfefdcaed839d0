"""What older folders lack, what is not finite, and what is out of the ordinary."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from infer.report.colors import colors_of, oklab
from infer.report.figures import plots_of
from infer.report.page import write_report
from infer.report.plots import drawn
from infer.report.study import LACKING, read_study
from tests.infer.report.folders import SIMILARITY, Page, build, remarked, swept, three


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three(tmp_path)


def heads(page: Page) -> dict[str, str]:
    """The classes of the columns' heads by hint."""
    labels = [head for head in page.all("th") if "label" in head.get("class", "")]
    return {head["title"].strip(): head["class"] for head in labels}


@pytest.mark.parametrize("column", [None, "fid", "seconds", "failed", "clip_score_mean"])
def test_infinite_numbers_of_the_table_do_not_stop_the_page(tmp_path: Path, column: str | None):
    swept(tmp_path)
    for name in ("comparison.parquet", "comparison_memorized.parquet"):
        table = pd.read_parquet(tmp_path / name)
        table.loc[1, column or "similarity_own_mean"] = np.inf
        table.to_parquet(tmp_path / name)
    assert "inf" in Page(write_report(tmp_path)).text


def test_curves_are_finite_where_a_trace_is_not(tmp_path: Path):
    build(tmp_path, {f"p{i}": "a cat" for i in range(4)}, {"none": 0.9, "stp": 0.4}, samples=1)
    for name in ("none", "stp"):
        traces = pd.read_parquet(tmp_path / name / "traces.parquet")
        traces.loc[traces["step"].eq(20) & traces["prompt_id"].eq("p0"), "difference_rms"] = np.inf
        traces.to_parquet(tmp_path / name / "traces.parquet")
    plots = {plot.name: plot for plot in plots_of(read_study(tmp_path))}
    for name in ("pull", "memorized_pull"):
        axes = drawn(plots[name]).axes[0]
        lines = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 50]
        assert lines and all(
            np.isfinite(values[:41]).all() for values in lines
        )  # by timestep: step 9 is last
        assert axes.get_ylim()[1] < 0.3


def test_an_infinite_score_is_no_score(folder: Path):
    path = folder / "none" / "samples.parquet"
    samples = pd.read_parquet(path)
    samples.loc[0, ["similarity_own", "clip_score"]] = np.inf
    samples.to_parquet(path)
    facts = [facts for facts in Page(write_report(folder)).facts("none") if facts["similarity to own"] == "–"]
    assert len(facts) == 1 and facts[0]["CLIP score"] == "–"


@pytest.mark.parametrize("columns", [[column] for column in LACKING] + [[*LACKING]], ids=" ".join)
def test_what_an_older_folder_lacks_is_left_out(folder: Path, columns: list[str]):
    for name in SIMILARITY:
        path = folder / name / "samples.parquet"
        pd.read_parquet(path).drop(columns=columns, errors="ignore").to_parquet(path)
    page = Page(write_report(folder))
    assert len(page.data["rows"]) == 6
    labels = {"transition_timestep": "transition", "seconds": "seconds", "nfe": "UNet evaluations"}
    assert not {labels[column] for column in columns if column in labels} & set(page.data["facts"])
    assert all(cell["moved"] is None for row in page.data["rows"] for cell in row["cells"] if cell) or (
        "transition_timestep" not in columns
    )
    assert ("Similarity of every image" in page.text) == ("similarity_own" not in columns)


@pytest.mark.parametrize("title", ["", " ", None])
def test_without_a_title_there_is_a_general_one(folder: Path, title: str | None):
    (folder / "comparison.json").write_text(json.dumps({"title": title, "notes": None}))
    page = Page(write_report(folder))
    assert page.text.count("Comparison of mitigations") == 2


def test_images_lost_are_shown_where_there_are_any(folder: Path):
    path = folder / "comparison.parquet"
    table = pd.read_parquet(path).assign(failed=0, unreadable=0)
    table.to_parquet(path)
    found = heads(Page(write_report(folder)))
    assert "minor" in found["failed: Images whose latents were not finite."]
    assert "minor" in found["unreadable: Images that could not be read."]
    table.assign(unreadable=[0, 3, 0]).to_parquet(path)
    page = Page(write_report(folder))
    found = heads(page)
    assert "minor" in found["failed: Images whose latents were not finite."]
    assert "minor" not in found["unreadable: Images that could not be read."]
    groups = [head for head in page.all("th") if "group" in head.get("class", "")]
    shown = sum(int(head["colspan"]) for head in groups if "minor" not in head["class"])
    assert shown == sum("minor" not in classes for classes in found.values())
    assert "unreadable" in (folder / "table.md").read_text().splitlines()[0]


def test_the_hints_say_what_is_counted_and_measured(folder: Path):
    path = folder / "comparison.parquet"
    pd.read_parquet(path).assign(peak_memory_gib=2.5).to_parquet(path)
    found = heads(Page(write_report(folder)))
    assert "images: Images generated." in found
    assert "cost per image GiB: Highest memory of the accelerator; on CPU, of the process." in found


def test_the_memorized_prompts_come_with_their_measure_and_notes(tmp_path: Path):
    page = Page(write_report(remarked(tmp_path)))
    assert "memorized without mitigation (7 of 12), SSCD above 0.5" in page.text
    assert any("similarity by SSCD above 0.5" in label.get("title", "") for label in page.all("label"))
    (notes,) = [attributes for attributes in page.all("ul") if attributes.get("data-of")]
    assert notes["data-of"] == "memorized" and "hidden" in notes
    assert "a note on the chosen <u>" in page.text and "another" in page.text
    (tmp_path / "comparison_memorized.parquet").unlink()
    assert "a note on the chosen" not in Page(write_report(tmp_path)).text


def test_the_memorized_prompts_of_an_older_comparison_have_neither(tmp_path: Path):
    page = Page(write_report(swept(tmp_path)))
    assert "memorized without mitigation (7 of 12), above 0.5" in page.text
    assert not [attributes for attributes in page.all("ul") if attributes.get("data-of")]


@pytest.mark.parametrize("count", [12, 13, 30, 60])
def test_no_two_mitigations_have_one_colour(count: int):
    names = ["none", "base_model", *(f"m{i}" for i in range(count))]
    colors = colors_of(names)
    places = oklab(np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors.values()]))
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(len(names))
    assert [*colors] == names and apart.min() > 0.025
    assert [*colors_of(names[:-1]).items()] == [*colors.items()][:-1]  # one more changes no other


def test_more_mitigations_than_the_palette_has_are_drawn(tmp_path: Path):
    names = {"none": 0.9} | {f"m{i}": 0.5 - i / 100 for i in range(14)}
    build(tmp_path, {"cat": "a cat"}, names, samples=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        colors = [column["color"] for column in Page(write_report(tmp_path)).data["columns"]]
    assert len(set(colors)) == 15
