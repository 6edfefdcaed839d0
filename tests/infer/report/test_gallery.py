"""The gallery of the page: its rows, strips, facts and traces."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from infer.report import gallery as report_gallery
from infer.report.gallery import make_gallery, size_of, thumbnail
from infer.report.page import write_report
from infer.report.study import read_study
from tests.infer.report.folders import SIMILARITY, SWEEP, Page, build, swept, three


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(three(tmp_path_factory.mktemp("three")))


def opened(strip: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(strip)))


def test_rows_are_sorted_by_similarity_and_facts_go_with_each_image(written: Path):
    page = Page(written)
    assert page.data["names"] == [*SIMILARITY]
    of_none = page.facts("none")
    similarities = [float(facts["similarity to own"]) for facts in of_none]
    assert similarities == sorted(similarities, reverse=True)
    assert of_none[0]["seed"] == str(2**62)  # exact: a number in JavaScript would round it
    assert of_none[0]["transition"] == "–" and page.facts("og<b>stp")[0]["transition"] == "timestep 640"


def test_a_strip_holds_the_images_of_its_row_exactly_and_nothing_where_one_is_missing(written: Path):
    page = Page(written)
    for row, strip in zip(page.data["rows"], page.strips, strict=True):
        image = opened(strip)
        assert image.size == (8 * 4, 8)
        for index, name in enumerate(SIMILARITY):
            tile = image.crop((8 * index + 8, 0, 8 * index + 16, 8))
            path = written.parent / name / "images" / f"{row['id']}-{row['sample']}.png"
            if path.exists():
                assert np.array_equal(np.asarray(tile.convert("RGB")), np.asarray(Image.open(path)))
            else:
                assert row["cells"][index] is None and tile.getextrema()[3] == (0, 0)
        assert row["training"] == (row["id"] != "fox")


def test_what_is_missing_is_counted(written: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    text = Page(written).text
    assert "Missing training images in these rows: 1 of 3." in text
    assert "Missing generated images in these rows: 1 of 18." in text
    assert "rows are shown" not in text
    (folder / "og<b>stp/images/cat-0.png").write_bytes(b"no image")
    monkeypatch.setattr(report_gallery, "MAX_ROWS", 2)
    gallery = make_gallery(read_study(folder))
    assert gallery.notes[0].startswith("2 of 6 rows are shown") and len(gallery.strips) == 2
    assert "Missing generated images in these rows: 1 of 6." in gallery.notes


def test_a_sweep_is_one_column(tmp_path: Path):
    columns = make_gallery(read_study(swept(tmp_path))).columns
    assert [column["title"] for column in columns] == ["none", "stp", "og_stp", "scenes/stp: timestep"]
    assert columns[-1]["names"] == [*SWEEP] and columns[-1]["values"] == ["400", "500", "600"]


def test_a_trace_comes_back_from_its_bytes(written: Path):
    data = Page(written).data
    assert data["timesteps"] == [[981.0 - 20 * step for step in range(50)]]
    cell = data["rows"][0]["cells"][2]
    shares = np.frombuffer(base64.b64decode(cell["trace"]["size"]), np.uint8)
    assert (shares[:9] == 255).all()
    assert np.allclose(shares[9:] / 254 * cell["trace"]["max"], 0.1 + np.arange(9, 50) / 1000, atol=0.001)
    assert cell["trace"]["scale"] == [[0, -2.0], [17, 7.5]] and cell["transition"] == 640


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_number_that_is_not_finite_is_a_gap(folder: Path, value: float):
    traces = pd.read_parquet(folder / "none" / "traces.parquet")
    first = (traces["prompt_id"] == "cat") & (traces["sample"] == 0)
    traces.loc[first & traces["step"].isin([20, 21]), ["difference_rms", "guidance_scale"]] = value
    traces.loc[first & (traces["step"] == 3), "timestep"] = value
    traces.to_parquet(folder / "none" / "traces.parquet")
    samples = pd.read_parquet(folder / "none" / "samples.parquet")
    samples.loc[1, ["similarity_own", "transition_timestep", "guidance_scale"]] = value
    samples.to_parquet(folder / "none" / "samples.parquet")
    gallery = make_gallery(read_study(folder))
    cell = next(row["cells"][0] for row in gallery.rows if (row["id"], row["sample"]) == ("cat", 0))
    shares = np.frombuffer(base64.b64decode(cell["trace"]["size"]), np.uint8)
    assert cell["trace"]["max"] == pytest.approx(0.149) and (shares[20:22] == 255).all() and shares[49] == 254
    assert cell["trace"]["scale"] == [[0, 7.5], [20, None], [22, 7.5]]
    assert gallery.timesteps[cell["trace"]["times"]][2:5] == [941.0, None, 901.0]
    other = next(row["cells"][0] for row in gallery.rows if (row["id"], row["sample"]) == ("cat", 1))
    assert other["own"] is None and other["transition"] is None


def test_the_nearest_image_by_sscd_stands_beside_that_by_correlation(folder: Path):
    assert "SSCD nearest image" not in make_gallery(read_study(folder)).facts
    path = folder / "none" / "samples.parquet"
    pd.read_parquet(path).assign(sscd_top=0.8, sscd_top_id="fox").to_parquet(path)
    facts = Page(write_report(folder)).facts("none")[0]
    assert facts["nearest image"] == "cat" and facts["SSCD nearest image"] == "fox"


def test_many_or_large_images_are_embedded_smaller(tmp_path: Path):
    Image.new("RGB", (512, 384)).save(tmp_path / "large.png")
    Image.new("RGB", (96, 96)).save(tmp_path / "small.png")
    image, scaled = thumbnail(tmp_path / "large.png", 256)
    assert image.size == (256, 192) and scaled
    assert not thumbnail(tmp_path / "small.png", 256)[1]
    assert thumbnail(tmp_path / "none.png", 256) is None
    assert size_of(100, 9) == (256, True) and size_of(1000, 9) == (128, False)
    assert size_of(1000, 60)[0] == 64 and size_of(1, 200)[0] * 200 <= 16383


def test_the_page_refers_to_files_with_odd_names(tmp_path: Path):
    build(tmp_path, {"a#b ?%": "odd"}, {"none": 0.9}, samples=1)
    row = make_gallery(read_study(tmp_path)).rows[0]
    assert row["file"] == "training/a%23b%20%3F%25.png"
    assert row["cells"][0]["file"] == "none/images/a%23b%20%3F%25-0.png"
