"""Pages in headless Chromium: one launch for all tests of a process, and what is measured on a page."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = "chromium", "chromium-browser", "google-chrome"
WIDTHS = 390, 820, 1920

MEASURES = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def chromium() -> str:
    """The browser's program; a test without one is skipped, but not in CI."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI"):
        pytest.fail("the tests of pages need chromium: apt-get install chromium")
    if found is None:
        pytest.skip("no chromium: apt-get install chromium, or CHROMIUM=PROGRAM")
    return found


class Window:
    """A page as a reader has it, with everything that went wrong on it."""

    def __init__(self, page):
        self.page, self.wrong, self.asked = page, [], []
        page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def show(self, file: Path, width: int = 1400, dark: bool = False):
        self.wrong.clear()
        self.asked.clear()
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.goto(file.as_uri())
        if self.page.query_selector(".explorer"):
            self.page.wait_for_selector(".explorer[data-ready]", timeout=10_000)
        return self.page

    def measure(self, name: str):
        return self.page.evaluate(f"{MEASURES.partition(chr(10))[2]}.{name}()")

    def cut(self) -> list[str]:
        return self.measure("cut")

    def faint(self) -> list[str]:
        return self.measure("faint")

    def unreached(self) -> set[int]:
        """Elements for use that Tab does not come by."""
        stops = set(map(int, self.measure("reachable")))
        self.page.evaluate("() => { document.activeElement?.blur(); window.scrollTo(0, 0); }")
        for _ in range(2 * len(stops) + 5):
            self.page.keyboard.press("Tab")
            stop = self.measure("stop")
            stops -= set() if stop is None else {int(stop)}
            if not stops:
                break
        return stops


@contextmanager
def window() -> Iterator[Window]:
    """One launch of the browser."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield Window(browser.new_page())
        browser.close()
