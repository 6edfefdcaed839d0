"""The table and the plots as files."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from infer.report.export import escape_latex, latex
from infer.report.page import write_report
from infer.report.study import read_study
from tests.infer.report.folders import build, swept, three, write_about


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with its report, for reading."""
    folder = swept(tmp_path_factory.mktemp("swept"))
    write_report(folder)
    return folder


def test_all_of_the_table_is_in_the_csv(folder: Path):
    source = pd.read_parquet(folder / "comparison.parquet")
    table = pd.read_csv(folder / "table.csv")
    assert set(source.columns) == set(table.columns)
    assert table["similarity_own_mean"].tolist() == pytest.approx(source["similarity_own_mean"].tolist())
    assert table["similarity_own_p95_published"].tolist()[:2] == [0.655, 0.286]
    assert (pd.read_csv(folder / "table_memorized.csv")["similarity_own_mean"] == 0.111).all()


def test_the_report_brings_its_exports(folder: Path):
    names = {path.name for path in (folder / "plots").iterdir()}
    stems = [
        "frontier",
        "frontier_memorized",
        "sweep1",
        "difference_memorized",
        "difference",
        "distributions",
    ]
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("svg", "png")}
    assert (folder / "table.tex").is_file() and not list(folder.glob(".*"))
    with Image.open(folder / "plots" / "frontier.png") as image:
        assert image.width > 800 and image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    svg = (folder / "plots" / "difference.svg").read_text()
    assert "#1f2328" in svg and "#123456" not in svg


def test_exports_of_a_former_comparison_go(folder: Path, tmp_path: Path):
    folder = shutil.copytree(folder, tmp_path / "copy")
    own = [folder / "table_memorized.txt", folder / "plots" / "sweep_mine.svg", folder / "table_mine.csv"]
    for path in own:
        path.write_text("mine")
    (folder / "comparison_memorized.parquet").unlink()
    write_about(folder)
    for path in folder.rglob("traces.parquet"):
        path.unlink()
    write_report(folder)
    stems = {"frontier", "distributions"}
    plots = {folder / "plots" / f"{stem}.{suffix}" for stem in stems for suffix in ("svg", "png")}
    assert {*(folder / "plots").iterdir()} == plots | {own[1]}
    assert [*folder.glob("table_memorized.*")] == [own[0]] and own[2].is_file()
    assert (folder / "table.csv").is_file()


def test_the_markdown_is_a_table(folder: Path):
    lines = (folder / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 6 and len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert lines[3].startswith(
        "| stp | 12 | 0.500 [0.489, 0.512]; Δ −0.400 [−0.421, −0.378] | 0.971; published 0.286"
    )


def test_the_tex_is_a_booktabs_table_with_names_escaped(tmp_path: Path):
    text = latex(read_study(three(tmp_path)).tables["all"], "all prompts")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\multicolumn"))
    assert rows[2].startswith("none & 6 & 0.937 [0.926, 0.949] &") and r"82.5\%" in rows[2]
    assert r"og\textless{}b\textgreater{}stp" in text and r"base\_model" in text
    assert len({row.count(" & ") for row in rows[1:]}) == 1
    assert escape_latex(r"a_b\c{d}") == r"a\_b\textbackslash{}c\{d\}"


def test_published_figures_have_a_row_of_their_own_in_the_tex(folder: Path):
    lines = (folder / "table.tex").read_text().splitlines()
    published = [line for line in lines if "published" in line]
    assert len(published) == 2 and "0.655" in published[0] and "0.286" in published[1]


def test_a_negative_number_is_math_in_the_tex(tmp_path: Path):
    study = read_study(build(tmp_path, {"cat": "a cat"}, {"none": -0.1}, samples=1))
    assert "$-$0.100 [$-$0.111, $-$0.088]" in latex(study.tables["all"], "all prompts")
