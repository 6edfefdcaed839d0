"""What the page says of a comparison: its table, headline, notes and plots; and what it must survive."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from rich.console import Console

from data.files import write_json
from infer.metrics.aggregate import can_win
from infer.metrics.columns import FIGURES
from infer.plotting import colors_of
from infer.report.figures import plots_of
from infer.report.page import write_report
from infer.report.plots import drawn
from infer.report.study import read_study
from infer.report.table import headline
from infer.report.terminal import terminal_table
from tests.infer.report.folders import (
    CLIP,
    PROMPTS,
    SIMILARITY,
    SWEEP,
    Page,
    build,
    swept,
    three,
    write_about,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(three(tmp_path_factory.mktemp("three"))))


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(swept(tmp_path_factory.mktemp("swept"))))


def heads(page: Page) -> dict[str, str]:
    """The classes of the columns' heads by hint."""
    labels = [head for head in page.all("th") if "label" in head.get("class", "")]
    return {head["title"].strip(): head["class"] for head in labels}


def change(path: Path, **columns) -> pd.DataFrame:
    table = pd.read_parquet(path).assign(**columns)
    table.to_parquet(path)
    return table


def test_the_table_shows_every_number(page: Page):
    text = page.text
    for name in SIMILARITY:
        assert {f"{SIMILARITY[name]:.3f}", f"{CLIP[name]:.3f}"} <= set(text.split())
        assert f"{SIMILARITY[name] - 0.011:.3f} to {SIMILARITY[name] + 0.012:.3f}" in text
    assert {"0.021", "0.971", "82.5%", "100.0", "0.53", "640"} <= set(re.split(r"[\sΔ]+", text))
    delta = SIMILARITY["og<b>stp"] - SIMILARITY["none"]
    assert f"Δ {delta:+.3f}  ({delta - 0.021:+.3f} to {delta + 0.022:+.3f})" in text
    assert "Δ +0.000" not in text  # of none to itself
    assert "FID" not in text  # all null: hidden
    best = re.findall(r'<td class="best">([\d.]+)', page.source)
    assert best == ["0.311", "0.413"]  # not of the base model
    assert "ignores brightness and contrast" in text


def test_the_headline_follows_from_the_numbers(page: Page, folder: Path):
    text = page.text
    assert "image at 0.94 (local correlation of 32x32 RGB); og<b>stp brings this to 0.41" in text
    assert "CLIP score goes from 0.31 to 0.29" in text and "base model is at 0.35" in text
    table = pd.read_parquet(folder / "comparison.parquet")
    assert "no mitigation lowers this" in headline(table.assign(similarity_own_mean=0.9))
    assert "CLIP" not in headline(table.drop(columns="clip_score_mean"))
    by_sscd = headline(table.assign(sscd_own_mean=[0.8, 0.3, 0.1]))
    assert "at 0.80 (SSCD); og<b>stp brings this to 0.10" in by_sscd
    of, rows = "(local correlation of 32x32 RGB)", table.set_index("mitigation", drop=False)
    base = "The untouched base model is at 0.35"
    assert headline(rows.loc[["base_model"]]) == f"{base} {of}."
    without = f"Without mitigation, images match their training image at 0.94 {of}."
    assert headline(rows.loc[["none", "base_model"]]) == f"{without} {base}."
    assert headline(rows.loc[["none"]]) == without


def test_black_images_win_nothing(tmp_path: Path):
    """Neither a folder of black images nor one with three of ten: not in the headline, and never bold."""
    build(tmp_path, {"cat": "a cat"}, {"none": 0.9, "dtp": 0.1, "stp": 0.5, "black": 0.0})
    table = change(tmp_path / "comparison.parquet", images=10, undefined=[0, 3, 0, 10])
    table.loc[3, "similarity_own_mean"] = np.nan
    table.to_parquet(tmp_path / "comparison.parquet")
    page = Page(write_report(tmp_path))
    assert can_win(table).tolist() == [True, False, True, False]
    assert "stp brings this to 0.50" in page.text
    assert re.findall(r'<td class="best">([\d.]+)', page.source) == ["0.311", "0.500"]
    assert "minor" not in heads(page)[next(hint for hint in heads(page) if hint.startswith("undefined:"))]


def test_captions_and_names_are_escaped(folder: Path):
    write_about(folder, title="<i>T</i>", notes=["<u>N</u>"])
    page = Page(write_report(folder))
    assert len(page.all("script")) == 3 and "<script>alert" not in page.source
    assert not page.all("u") and "<b>stp" not in page.source
    assert {row["prompt"] for row in page.data["rows"]} == set(PROMPTS.values())
    assert "og<b>stp" in page.data["names"]
    assert "<i>T</i>" in page.text and "<u>N</u>" in page.text


def test_the_page_needs_no_network(page: Page):
    urls = set(re.findall(r"\w+://[^\s\"'<]*", page.source))
    assert urls == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not page.all("link") and not page.all("img")
    assert page.source.count("connect-src") == 0 and "default-src 'none'" in page.source
    assert "base-uri 'none'; form-action 'none'" in page.source
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_scores_may_be_missing(folder: Path):
    for name in SIMILARITY:
        unscored = {"similarity_own": None, "similarity_top": None, "top_train_id": None, "clip_score": None}
        change(folder / name / "samples.parquet", **unscored)
    table = pd.read_parquet(folder / "comparison.parquet")
    table[["mitigation", "images"]].to_parquet(folder / "comparison.parquet")
    page = Page(write_report(folder))
    assert "similarity to own" not in page.data["facts"] and len(page.data["rows"]) == 6


def test_a_single_row_without_traces(tmp_path: Path):
    build(tmp_path, {"cat": "a cat"}, {"none": 0.9}, samples=1)
    (tmp_path / "none" / "traces.parquet").unlink()
    page = Page(write_report(tmp_path))
    assert len(page.data["rows"]) == 1 and page.data["rows"][0]["cells"][0]["trace"] is None
    assert "What the prompt adds" not in page.text and "Similarity of every image" in page.text


def test_memorized_prompts_have_a_table_notes_and_a_plot_of_their_own(sweep_page: Page, tmp_path: Path):
    assert "memorized without mitigation (7 of 12), SSCD above 0.5" in sweep_page.text
    parts = [attributes for _, attributes in sweep_page.tags if "data-of" in attributes]
    assert [part["data-of"] for part in parts] == ["all", "memorized", "memorized", "all", "memorized"]
    assert all(("hidden" in part) == (part["data-of"] == "memorized") for part in parts)
    assert sweep_page.text.count("0.111") == 6 and "a note on the chosen <u>" in sweep_page.text
    (swept(tmp_path) / "comparison_memorized.parquet").unlink()
    text = Page(write_report(tmp_path)).text
    assert not any(part in text for part in ("memorized without mitigation", "0.111", "a note on the chosen"))


def test_published_figures_stand_beside_ours_even_where_we_have_none(sweep_page: Page):
    assert re.findall(r"([\d.–]+) +published ([\d.]+)", sweep_page.text)[:4] == [
        ("0.971", "0.655"), ("–", "13.1"), ("0.971", "0.286"), ("–", "5.7"),
    ]  # fmt: skip
    assert {"similarity_own_mean", "sscd_share_above_05", "fid", "nfe_mean"} <= {*FIGURES}


def test_a_sweep_is_a_group_of_rows_by_value_and_wins_no_prize(sweep_page: Page):
    page = sweep_page
    labels = [f"timestep {value}" for value in SWEEP.values()]
    positions = [page.text.index(label) for label in ("scenes/stp: timestep", *labels)]
    assert positions == sorted(positions) and "3 points" in page.text
    assert "og_stp brings this to 0.10" not in page.text and "og_stp brings this to 0.30" in page.text
    best = re.findall(r'<td class="best">([\d.]+)', page.source)
    assert best == ["0.311", "0.300", "0.311"]  # of both tables
    assert "Sweep of scenes/stp: timestep" in page.text


def test_values_of_a_sweep_need_not_be_numbers(tmp_path: Path):
    sweeps = json.loads((swept(tmp_path) / "comparison.json").read_text())["sweeps"]
    for point, value in zip(sweeps[0]["points"], ("model", None, [1, 2]), strict=True):
        point["value"] = value
    sweeps.append({"preset": "wen", "option": "loss", "points": [{"value": 1, "mitigation": "gone"}]})
    (tmp_path / "comparison_memorized.parquet").unlink()
    write_about(tmp_path, sweeps=sweeps)
    page = Page(write_report(tmp_path))
    assert page.data["columns"][-1]["values"] == ["model", "None", "[1, 2]"]
    assert "Sweep of" not in page.text and len(page.data["columns"]) == 4


def test_columns_wait_unless_they_have_something_to_say(sweep_page: Page, folder: Path):
    classes = heads(sweep_page)
    assert "minor" in classes["spread of similarity to own std: Standard deviation over images."]
    change(folder / "comparison.parquet", failed=0, unreadable=[0, 3, 0])
    page = Page(write_report(folder))
    classes = heads(page)
    assert "minor" in classes["failed: Latents or pixels are not finite."]
    assert "minor" not in classes["unreadable: Images that could not be read."]
    groups = [head for head in page.all("th") if "group" in head.get("class", "")]
    shown = sum(int(head["colspan"]) for head in groups if "minor" not in head["class"])
    assert shown == sum("minor" not in each for each in classes.values())
    assert "unreadable" in (folder / "table.md").read_text().splitlines()[0]


def test_infinite_numbers_of_the_table_do_not_stop_the_page(tmp_path: Path):
    swept(tmp_path)
    for name in ("comparison.parquet", "comparison_memorized.parquet"):
        table = pd.read_parquet(tmp_path / name).assign(failed=0.0)
        table.loc[1, ["similarity_own_mean", "fid", "failed", "clip_score_mean"]] = np.inf
        table.to_parquet(tmp_path / name)
    assert "inf" in Page(write_report(tmp_path)).text


def test_curves_are_finite_where_a_trace_is_not_and_few_prompts_are_thin(tmp_path: Path):
    """A curve of one prompt beside one of six says so, and has no spread."""
    build(tmp_path, {f"p{i}": "a cat" for i in range(7)}, {"none": 0.45, "stp": 0.4}, samples=1)
    for name in ("none", "stp"):
        traces = pd.read_parquet(tmp_path / name / "traces.parquet")
        traces.loc[traces["step"].eq(20) & traces["prompt_id"].eq("p0"), "difference_rms"] = np.inf
        traces.to_parquet(tmp_path / name / "traces.parquet")
    samples = pd.read_parquet(tmp_path / "none/samples.parquet")
    samples.loc[1, "similarity_own"] = 0.9
    samples.to_parquet(tmp_path / "none/samples.parquet")
    plots = {plot.name: plot for plot in plots_of(read_study(tmp_path))}
    for name in ("difference", "difference_memorized"):
        axes = drawn(plots[name]).axes[0]
        lines = [line for line in axes.lines if len(line.get_ydata()) == 50]
        # by timestep: step 9 is last
        assert lines and all(np.isfinite(line.get_ydata()[:41]).all() for line in lines)
        assert axes.get_ylim()[1] < 0.3
    labels = [line.get_label() for line in lines]
    assert labels == ["memorized, 1 prompt: too few", "not memorized, 6 prompts"]
    assert lines[0].get_linewidth() < lines[1].get_linewidth() and len(axes.collections) == 1


def test_mitigations_have_colours_of_their_own(tmp_path: Path):
    """28 of them, none near that of copies; and the base model comes second in plots and table."""
    names = ["none", "base_model", *(f"m{i}" for i in range(28))]
    colors = colors_of(names)
    assert [*colors] == names and len(set(colors.values())) == len(names)
    assert [*colors_of(names[:-1]).items()] == [*colors.items()][:-1]  # one more changes no other
    rgb = np.array([to_rgb(color) for color in colors.values()])
    apart = np.linalg.norm(rgb[:, None] - rgb, axis=-1) + np.eye(len(rgb))
    assert apart[0].min() > 0.15 and apart.min() > 0.04
    build(tmp_path, {"cat": "a cat"}, {"none": 0.9, "stp": 0.5, "base_model": 0.3}, samples=1)
    page, order = Page(write_report(tmp_path)), ["none", "base_model", "stp"]
    assert page.data["names"] == order
    assert [head["title"] for head in page.all("th") if head.get("scope") == "row"] == order
    assert pd.read_csv(tmp_path / "table.csv")["mitigation"].tolist() == order


@pytest.mark.parametrize("width, shown", [(100, 6), (80, 4)])
def test_the_terminal_table_fits_and_cuts_no_name(width: int, shown: int) -> None:
    """Long names take nothing from the numbers: on 80 columns they are folded. Lost images are counted."""
    names = ["none", "detour_caption_orthogonal" if width == 80 else "somepalli_number", "base_model"]
    numbers = ["similarity_own_mean", "similarity_own_p95", "similarity_top_mean", "clip_score_mean"]
    numbers += ["sscd_own_mean", "sscd_own_p95"] if width == 100 else []
    costs = {"nfe_mean": 100.0, "seconds_per_image": 123.456, "undefined": [0, 33, 0], "failed": 0}
    table = pd.DataFrame({"mitigation": names} | {key: -0.123 for key in numbers} | costs)
    with (console := Console(width=width)).capture() as captured:
        console.print(terminal_table(table))
    text = captured.get()
    assert "…" not in text and text.count("-0.123") == 3 * shown and text.count("100.0") == 3
    assert "undef." in text and "33" in text and "failed" not in text
    assert names[1] in "".join(line.split()[0] for line in text.splitlines() if line.strip())


def test_a_mitigation_that_is_a_sweeps_point_too_stands_by_itself(tmp_path: Path):
    """In the headline, the legend, the gallery and the table; its image is embedded once."""
    stp = "scenes/stp(timestep=500)"
    about = json.loads((swept(tmp_path) / "comparison.json").read_text())
    write_json(tmp_path / "comparison.json", about | {"mitigations": ["none", stp]})
    table = change(tmp_path / "comparison.parquet", clip_score_mean=0.3)
    table.loc[table["mitigation"] == stp, "similarity_own_mean"] = 0.1
    table.to_parquet(tmp_path / "comparison.parquet")
    page = Page(write_report(tmp_path))
    assert f"{stp} brings this to 0.10" in page.text
    titles = [column["title"] for column in page.data["columns"]]
    assert titles == ["none", "stp", "og_stp", stp, "scenes/stp: timestep"]
    assert page.data["names"].count(stp) == 1 and len(page.data["names"]) == 6
    assert page.data["columns"][-1]["names"] == [*SWEEP]
    rows = [tag for tag in page.all("th") if tag.get("scope") == "row"]
    assert [row["title"] for row in rows].count(stp) == 2 * 2  # of all prompts, and of the memorized ones
