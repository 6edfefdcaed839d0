"""How large a page is, and how long a browser takes until its first image is there."""

import shutil
import time
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


def load_seconds(page: Path) -> float | None:
    """Seconds from the address to the first image; None without playwright or a Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if CHROMIUM is None:
        return None
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        opened = browser.new_page(viewport={"width": 1300, "height": 900})
        started = time.perf_counter()
        opened.goto(page.as_uri())
        opened.locator(".shot").first.wait_for()
        seconds = time.perf_counter() - started
        browser.close()
    return seconds


def page_cells(page: Path) -> str:
    """Both numbers in words."""
    seconds = load_seconds(page)
    loading = "no browser here" if seconds is None else f"opens in {seconds:.1f} s"
    return f"page of {page.stat().st_size / 2**20:.1f} MiB, {loading}"
