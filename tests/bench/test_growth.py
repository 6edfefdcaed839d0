"""The bench of growth: its folders are real ones, and its exponents those of known curves."""

from math import isnan
from pathlib import Path

import pandas as pd
import pytest

from infer.__main__ import main as infer
from tests.bench.growth import __main__ as growth
from tests.bench.growth.curve import Usage, exponent, largest, sizes
from tests.bench.growth.work import WORK
from tests.infer.report.folders import Page

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 20


def run(row: str, folder: Path) -> Path:
    [args] = WORK[row].make(folder, COUNT)
    assert infer(args) == 0
    return folder


def test_an_exponent_is_the_power_of_the_count() -> None:
    for power in (0.5, 1, 2):
        assert exponent((10, 1000), (3 * 10**power, 3 * 1000**power), 1) == pytest.approx(power)
    assert isnan(exponent((10, 1000), (0.1, 0.9), 1))  # noise
    assert exponent((10, 1000), (-0.3, 100), 1) == pytest.approx(1)  # the smaller one counts as 1


def test_more_than_linear_is_flagged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Time of the power 1.5, memory of 1; of two ranks the larger one."""

    def usage_of(work: object, count: int, folder: Path) -> Usage:
        each = Usage(count, 2 * (count / 100) ** 1.5, count, 300)
        return largest([each, Usage(0, 0, count / 2, 400)])

    monkeypatch.setattr(growth, "usage_of", usage_of)
    first, second = growth.main(["plan_2", "--largest", "10000"])[2:]
    assert first == ("plan_2", "1,000", "1000.0", "63.2", "", "1000", "", "")
    assert second == ("plan_2", "10,000", "10000.0", "2000.0", "1.50", "10000", "1.00", "ABOVE LINEAR")
    assert "| plan_2 | 10,000 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        growth.main(["nope"])
    assert "no row 'nope'" in capsys.readouterr().err


def test_sizes_end_with_the_largest() -> None:
    assert sizes(100_000) == [1000, 10_000, 100_000] and sizes(30_000) == [1000, 10_000, 30_000]
    assert sizes(1000) == [100, 1000] and sizes(50) == [5, 50]


def test_a_synthetic_run_can_be_scored(tmp_path: Path) -> None:
    run("score", tmp_path)
    rows = pd.read_parquet(tmp_path / "none/samples.parquet")
    assert len(rows) == COUNT and rows[["similarity_own", "clip_score"]].notna().all().all()


def test_a_synthetic_comparison_has_a_page(tmp_path: Path) -> None:
    page = Page(run("report", tmp_path) / "report.html")
    assert len(page.data["rows"]) == COUNT and "Missing" not in page.text
    assert page.data["rows"][0]["cells"][0]["trace"]["times"] == 0


@pytest.mark.parametrize("row, images", [("plan", 4), ("merge", COUNT)])
def test_a_synthetic_run_goes_on(row: str, images: int, tmp_path: Path) -> None:
    """One batch of the prompts; or nothing where the parts hold all, which are put together."""
    rows = pd.read_parquet(run(row, tmp_path) / "run/samples.parquet")
    assert len(rows) == images and not (tmp_path / "run/parts").exists()


@pytest.mark.slow
def test_a_row_is_measured_in_processes_of_its_own(capsys: pytest.CaptureFixture) -> None:
    """Two ranks, one batch each."""
    [_, line] = growth.main(["plan_2", "--largest", "40"])[2:]
    assert line[:2] == ("plan_2", "40") and float(line[5]) >= 0
