"""The page in a real browser, opened as a file."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from infer.report.page import write_report
from tests.infer.report.folders import SWEEP, build, swept, three

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser on this machine: none of {BROWSERS}")
PIXEL = "canvas => [...canvas.getContext('2d').getImageData(2, 2, 1, 1).data.slice(0, 3)]"
SIDEWAYS = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(swept(tmp_path_factory.mktemp("swept"), size=32))


@pytest.fixture
def opened(browser) -> Iterator:
    """Open a page, offline; what it throws, or asks for from elsewhere, fails the test at its end."""
    contexts, errors = [], []

    def open_page(target: Path, **options):
        viewport = options.pop("viewport", {"width": 1300, "height": 900})
        context = browser.new_context(offline=True, viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request", lambda request: errors.append(request.url) if leaves(request.url, target) else None
        )
        page.goto(target.as_uri())
        page.locator(".shot").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def leaves(url: str, target: Path) -> bool:
    return not url.startswith(("data:", target.parent.as_uri()))


def settled(page, selector: str, pixel: list[int] | None = None) -> list[int]:
    """The colour of a canvas, once it is another than the given one."""
    locator = page.locator(selector)
    for _ in range(100):
        if locator.evaluate(PIXEL) not in (pixel, [0, 0, 0]):
            break
        page.wait_for_timeout(20)
    return locator.evaluate(PIXEL)


def test_the_filter_leaves_the_rows_that_match(opened, target: Path):
    page = opened(target)
    rows = page.locator(".gallery tbody tr:visible")
    assert rows.count() == 12
    page.fill("[type=search]", "NUMBER 1")
    assert rows.count() == 3 and page.locator(".tools output").last.inner_text() == "3 of 12 rows"
    page.fill("[type=search]", " <b>Yz ")
    assert rows.count() == 0 and page.get_by_text("no prompt holds '<b>Yz'").is_visible()
    assert not page.locator(".gallery").is_visible()
    page.fill("[type=search]", "")
    assert rows.count() == 12 and not page.locator(".nothing").is_visible()


def test_an_image_opens_with_its_numbers_and_trace_and_keys_move_on(opened, target: Path):
    page = opened(target)
    page.locator(".gallery tbody tr").nth(1).locator(".shot").nth(1).click()
    dialog = page.locator("dialog")
    assert dialog.get_attribute("open") is not None
    caption = dialog.locator("figcaption").last
    assert caption.inner_text() == "stp" and "prompt number 1" in dialog.inner_text()
    assert "timestep 640" in dialog.locator("dl").inner_text()
    assert dialog.locator(".trace path").count() == 3  # the trace, that of none, and the guidance scale
    assert dialog.locator(".trace .transition").count() == 1
    assert "transition 640" in dialog.locator(".trace").inner_html()
    page.keyboard.press("ArrowLeft")
    assert caption.inner_text() == "none" and dialog.locator(".trace .transition").count() == 0
    page.keyboard.press("ArrowDown")
    assert "prompt number 2" in dialog.inner_text() and caption.inner_text() == "none"
    page.keyboard.press("Escape")
    assert dialog.get_attribute("open") is None
    assert page.evaluate("document.activeElement.dataset.name") == "none"


def test_the_slider_of_a_sweep_changes_the_image(opened, target: Path):
    page = opened(target)
    page.locator(".gallery tbody tr").first.locator(".shot").nth(3).click()
    slider, caption = page.locator("dialog [type=range]"), page.locator("dialog figcaption").last
    seen, last = [], None
    for point, name in enumerate(SWEEP):
        slider.fill(str(point))
        assert caption.inner_text() == name
        last = settled(page, "dialog figure:nth-of-type(2) canvas", last)
        seen.append(tuple(last))
        assert f"timestep {SWEEP[name]}" in page.locator("dialog .sweep output").inner_text()
        assert (
            page.locator(".gallery tbody tr").first.locator(".shot").nth(3).get_attribute("data-name") == name
        )
    assert len(set(seen)) == 3
    slider.press("ArrowLeft")  # moves the slider, not the dialog
    assert caption.inner_text() == [*SWEEP][1]


def test_the_slider_of_the_column_changes_all_rows(opened, target: Path):
    page = opened(target)
    before = settled(page, ".gallery tbody tr:nth-child(2) .shot >> nth=3 >> canvas")
    page.locator(".gallery thead [type=range]").fill("0")
    names = page.locator(".gallery tbody tr .shot[data-column='3']").evaluate_all(
        "all => all.map(e => e.dataset.name)"
    )
    assert set(names) == {"scenes/stp(timestep=400)"}
    assert settled(page, ".gallery tbody tr:nth-child(2) .shot >> nth=3 >> canvas", before) != before


def test_the_table_switches_population_columns_and_folds(opened, target: Path):
    page = opened(target)
    assert page.locator(".numbers:visible").count() == 1 and not page.get_by_text("0.111").first.is_visible()
    note = page.get_by_text("a note on the chosen")
    assert not note.is_visible()
    page.get_by_text("memorized without mitigation").click()
    assert page.get_by_text("0.111").first.is_visible() and page.locator(".numbers:visible").count() == 1
    assert note.is_visible()
    std = page.locator(".numbers:visible .label", has_text="std")
    assert not std.is_visible()
    page.get_by_label("all columns").check()
    assert std.is_visible()
    point = page.locator(".numbers:visible th", has_text="timestep 400")
    assert point.is_visible()
    page.locator(".numbers:visible .fold button").click()
    assert not point.is_visible()


def test_a_trace_with_gaps_is_drawn(opened, tmp_path: Path):
    build(tmp_path, {"cat": "a cat"}, {"none": 0.9}, samples=1)
    path = tmp_path / "none" / "traces.parquet"
    traces = pd.read_parquet(path)
    traces.loc[20:21, ["difference_rms", "guidance_scale"]] = float("inf")
    traces.loc[30, "timestep"] = float("nan")
    traces.to_parquet(path)
    page = opened(write_report(tmp_path))
    page.locator(".shot").click()
    pull, scale = (path.get_attribute("d") for path in page.locator("dialog .trace path").all())
    assert pull.count("M") == 3 and scale.count("M") == 2 and "NaN" not in pull + scale


def test_the_page_follows_the_colours_of_the_system(opened, target: Path):
    background = "getComputedStyle(document.body).backgroundColor"
    assert opened(target, color_scheme="light").evaluate(background) == "rgb(252, 252, 251)"
    dark = opened(target, color_scheme="dark")
    assert dark.evaluate(background) == "rgb(19, 20, 23)"
    text = dark.evaluate("getComputedStyle(document.querySelector('.plots svg text')).fill")
    assert text == "rgb(231, 232, 234)"


def test_a_phone_needs_no_sideways_scrolling(opened, target: Path):
    page = opened(target, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    assert page.evaluate(SIDEWAYS) == 0
    page.locator(".shot").first.tap()
    box = page.locator("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and page.evaluate(SIDEWAYS) == 0


def test_at_1400_pixels_every_mitigation_is_in_sight_and_every_column_in_reach(opened, tmp_path: Path):
    """Nine mitigations with long labels: names are whole, the table scrolls beside them."""
    names = {"none": 0.9, "scenes/og_stp+detour(timestep=650)": 0.1} | {f"scenes/m{i}": 0.5 for i in range(7)}
    build(tmp_path, {"cat": "a cat"}, names, samples=1)
    path, table = tmp_path / "comparison.parquet", pd.read_parquet(tmp_path / "comparison.parquet")
    table.assign(**{f"sscd_{kind}": 0.5 for kind in ("own_mean", "own_p95")}, kid=0.1, cmmd=0.2).to_parquet(
        path
    )
    page = opened(write_report(tmp_path), viewport={"width": 1400, "height": 900})
    box = page.locator(".gallery td").last.bounding_box()
    assert page.evaluate(SIDEWAYS) == 0 and box["x"] + box["width"] <= 1400
    page.locator(".numbers:visible").evaluate("table => { table.parentElement.scrollLeft = 9999; }")
    last, name = (page.locator(f".numbers:visible tbody tr {cell}").last for cell in ("td:not(.minor)", "th"))
    for cell in (last.bounding_box(), name.bounding_box()):
        assert cell["x"] >= 0 and cell["x"] + cell["width"] <= 1400
    for head in page.locator(".numbers tbody th, .gallery thead div").all():
        assert head.evaluate("cell => cell.scrollWidth <= cell.clientWidth + 1")


def test_captions_do_nothing_and_missing_images_are_said(opened, tmp_path: Path):
    page = opened(write_report(three(tmp_path)))
    assert page.locator(".gallery tbody tr p").first.inner_text() == "a <script>alert(1)</script> cat"
    assert page.locator(".gallery td .missing").count() == 1
    assert page.locator(".gallery th .missing").count() == 2
    page.locator(".gallery tbody tr", has_text="fox").first.locator(".shot").first.click()
    assert page.locator("dialog figure:visible").count() == 1


def test_large_images_come_from_their_files_where_these_are(opened, tmp_path: Path):
    target = write_report(build(tmp_path, {"cat": "a cat"}, {"none": 0.9}, samples=1, size=300))
    page = opened(target)
    page.locator(".shot").click()
    page.wait_for_function("document.querySelector('dialog figure:nth-of-type(2) canvas').width === 300")


def test_a_thousand_rows_scroll_and_only_those_in_sight_hold_images(opened, tmp_path: Path):
    prompts = {f"p{i:04}": f"prompt number {i}" for i in range(1000)}
    target = write_report(build(tmp_path, prompts, {"none": 11.0, "stp": 10.9}, samples=1))
    assert target.stat().st_size < 5e6
    page = opened(target)
    gallery = page.locator(".gallery")
    for share in (0.3, 0.7, 1):
        gallery.evaluate(f"(element) => {{ element.scrollTop = element.scrollHeight * {share}; }}")
        page.wait_for_timeout(100)
    last = gallery.locator("tbody tr").last
    last.locator(".shot").first.wait_for()
    assert "prompt number 999" in last.inner_text()
    assert gallery.locator("tbody tr").count() == 1000 and gallery.locator(".shot").count() < 100
    page.fill("[type=search]", "number 500")
    gallery.locator("tr", has_text="number 500").locator(".shot").first.wait_for()
