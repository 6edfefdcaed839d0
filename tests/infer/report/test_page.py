import json
import re
from pathlib import Path

import pandas as pd
import pytest

from infer.report.page import write_report
from infer.report.table import headline
from tests.infer.report.folders import CLIP, PROMPTS, SIMILARITY, SWEEP, Page, build, swept, three


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(three(tmp_path_factory.mktemp("three"))))


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(swept(tmp_path_factory.mktemp("swept"))))


def test_the_table_shows_every_number(page: Page):
    text = page.text
    for name in SIMILARITY:
        assert {f"{SIMILARITY[name]:.3f}", f"{CLIP[name]:.3f}"} <= set(text.split())
        assert f"{SIMILARITY[name] - 0.011:.3f} to {SIMILARITY[name] + 0.012:.3f}" in text
    assert {"0.021", "0.971", "82.5%", "100.0", "0.53", "640", "0.678"} <= set(re.split(r"[\sΔ]+", text))
    delta = SIMILARITY["og<b>stp"] - SIMILARITY["none"]
    assert f"Δ {delta:+.3f}  ({delta - 0.021:+.3f} to {delta + 0.022:+.3f})" in text
    assert "Δ +0.000" not in text  # of none to itself
    assert "FID" not in text  # all null: hidden


def test_best_values_are_marked_but_not_those_of_the_base_model(page: Page):
    assert re.findall(r'<td class="best">([\d.]+)', page.source) == ["0.311", "0.413"]


def test_the_headline_follows_from_the_numbers(page: Page, folder: Path):
    text = page.text
    assert "match their training image at 0.94; og<b>stp brings this to 0.41" in text
    assert "CLIP score goes from 0.31 to 0.29" in text
    assert "base model is at 0.35" in text
    table = pd.read_parquet(folder / "comparison.parquet")
    assert "no mitigation lowers this" in headline(table.assign(similarity_own_mean=0.9))
    assert "CLIP" not in headline(table.drop(columns="clip_score_mean"))


def test_captions_and_names_are_escaped(folder: Path):
    (folder / "comparison.json").write_text(json.dumps({"title": "<i>T</i>", "notes": ["<u>N</u>"]}))
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
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_path_of_the_table_that_leaves_its_folder_is_refused(folder: Path):
    table = pd.read_parquet(folder / "comparison.parquet")
    table.replace("none", "../none").to_parquet(folder / "comparison.parquet")
    with pytest.raises(ValueError, match="points outside"):
        write_report(folder)


def test_scores_may_be_missing(folder: Path):
    for name in SIMILARITY:
        path = folder / name / "samples.parquet"
        unscored = {"similarity_own": None, "similarity_top": None, "top_train_id": None, "clip_score": None}
        pd.read_parquet(path).assign(**unscored).to_parquet(path)
    table = pd.read_parquet(folder / "comparison.parquet")
    table[["mitigation", "images"]].to_parquet(folder / "comparison.parquet")
    page = Page(write_report(folder))
    assert "similarity to own" not in page.data["facts"] and len(page.data["rows"]) == 6


def test_without_a_comparison_the_error_says_what_to_run(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="python -m infer compare"):
        write_report(tmp_path)


def test_a_single_row_without_traces(tmp_path: Path):
    build(tmp_path, {"cat": "a cat"}, {"none": 0.9}, samples=1)
    (tmp_path / "none" / "traces.parquet").unlink()
    page = Page(write_report(tmp_path))
    assert len(page.data["rows"]) == 1 and page.data["rows"][0]["cells"][0]["trace"] is None
    assert "Pull of the prompt" not in page.text and "Similarity of every image" in page.text


def test_memorized_prompts_have_a_table_and_a_plot_of_their_own(tmp_path: Path):
    page = Page(write_report(swept(tmp_path)))
    assert "memorized without mitigation (7 of 12), above 0.5" in page.text
    parts = [attributes for _, attributes in page.tags if "data-of" in attributes]
    assert [part["data-of"] for part in parts] == ["all", "memorized"] * 2
    assert all(("hidden" in part) == (part["data-of"] == "memorized") for part in parts)
    assert page.text.count("0.111") == 6
    (tmp_path / "comparison_memorized.parquet").unlink()
    page = Page(write_report(tmp_path))
    assert "memorized without mitigation" not in page.text and "0.111" not in page.text


def test_published_figures_stand_beside_ours_even_where_we_have_none(sweep_page: Page):
    text = sweep_page.text
    assert re.findall(r"([\d.–]+) +published ([\d.]+)", text)[:4] == [
        ("0.971", "0.655"), ("–", "13.1"), ("0.971", "0.286"), ("–", "5.7"),
    ]  # fmt: skip


def test_a_sweep_is_a_group_of_rows_by_value_and_wins_no_prize(sweep_page: Page):
    page = sweep_page
    labels = [f"timestep {value}" for value in SWEEP.values()]
    places = [page.text.index(label) for label in ("stp: timestep", *labels)]
    assert places == sorted(places) and "3 points" in page.text
    assert "og_stp brings this to 0.30" in page.text
    assert re.findall(r'<td class="best">([\d.]+)', page.source) == [
        "0.311",
        "0.300",
        "0.311",
    ]  # of both tables
    assert "Sweep of stp: timestep" in page.text


def test_values_of_a_sweep_need_not_be_numbers(tmp_path: Path):
    swept(tmp_path)
    about = json.loads((tmp_path / "comparison.json").read_text())
    for point, value in zip(about["sweeps"][0]["points"], ("model", None, [1, 2]), strict=True):
        point["value"] = value
    about["sweeps"].append(
        {"preset": "wen", "option": "loss", "points": [{"value": 1, "mitigation": "gone"}]}
    )
    (tmp_path / "comparison.json").write_text(json.dumps(about))
    page = Page(write_report(tmp_path))
    assert page.data["columns"][-1]["values"] == ["model", "None", "[1, 2]"]
    assert "Sweep of" not in page.text and len(page.data["columns"]) == 4


def test_unknown_columns_are_shown_and_minor_ones_wait(sweep_page: Page):
    page = sweep_page
    heads = {head["title"].split(":")[0].strip(): head["class"] for head in page.all("th") if "title" in head
             and "label" in head.get("class", "")}  # fmt: skip
    assert "minor" not in heads["more lpips mean"]
    assert "minor" in heads["spread of similarity to own std"]
