"""The system's own Chromium, headless, for tests that look at pages as people see them.

It has no network of its own to use: what a page asks for from outside fails, and is told.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
_CONTRAST = Path(__file__).parent / "contrast.js"
PHONE, DESK = (390, 844), (1280, 900)
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser that ends with the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, address: str | Path, *, size: tuple[int, int] = DESK) -> Iterator[Page]:
    """A page; fails at the end where it has complained or asked for something that it didn't get."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"not got: {request.url}"))
    page.goto(address.as_uri() if isinstance(address, Path) else address)
    try:
        yield page
    finally:
        page.close()
    assert complaints == []


def overflows(page: Page) -> int:
    """Pixels by which the page is wider than the window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def worst_contrast(page: Page) -> tuple[float, str]:
    """Of a text with what lies behind it, and the text."""
    contrast, words = page.evaluate(_CONTRAST.read_text(encoding="utf-8"))
    return float(contrast), str(words)
