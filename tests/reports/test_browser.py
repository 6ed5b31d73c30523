"""Every page in headless Chromium: nothing cut, nothing faint, no error, everything by pointer and by keys."""

import json
import re
from urllib.parse import unquote

import pytest
from browser import WIDTHS, Window, window
from every_page import make_pages

from dit_shd.reports import demo_page
from dit_shd.reports.run_page import RunLog, write_run_page

pytest.importorskip("mlxtend")
KINDS = "inspect", "text", "prompt", "study", "plot", "evaluation", "comparison", "demo", "pictures", "text_demo"
MOST_BYTES = 3_000_000


@pytest.fixture(scope="module")
def pages(tmp_path_factory, root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_page, "ALPHA_IMAGES", 16)
        made = make_pages(tmp_path_factory.mktemp("pages"), root)
    assert set(made) == set(KINDS)
    return made


@pytest.fixture(scope="module")
def reader():
    with window() as shown:
        yield shown


@pytest.fixture
def shown(reader: Window, pages):
    """A function that opens a page."""
    return lambda kind, width=1400, dark=False: reader.show(pages[kind], width, dark)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_at_every_width_in_both_lights(kind, pages, reader):
    assert pages[kind].stat().st_size < MOST_BYTES
    for width in WIDTHS:
        for dark in (False, True):
            reader.show(pages[kind], width, dark)
            assert reader.wrong == []
            assert all(url.startswith(("file:", "data:", "blob:")) for url in reader.asked)
            assert len([url for url in reader.asked if url.startswith("file:")]) == 1, "a page is one file"
            assert reader.faint() == [], (width, dark)
            if not dark:
                assert reader.cut() == [], width


@pytest.mark.parametrize("kind", KINDS)
def test_keys_reach_everything(kind, pages, reader):
    reader.show(pages[kind], 820)
    assert reader.unreached() == set()


@pytest.mark.parametrize("kind", KINDS)
def test_the_finding_comes_first_and_links_lead_to_files(kind, pages, shown):
    page = shown(kind)
    first = page.evaluate("document.querySelector('main .finding').getBoundingClientRect().top")
    assert first < 500
    for target in page.eval_on_selector_all("a[href]", "links => links.map(link => link.getAttribute('href'))"):
        if target.startswith("#"):
            assert page.query_selector(target), target
        else:
            assert (pages[kind].parent / unquote(target)).resolve().exists(), target


def drawn(page, selector: str) -> str:
    """What a canvas shows."""
    return page.eval_on_selector(selector, "canvas => canvas.toDataURL()")


def test_slider_layer_token_and_head_change_the_maps(shown):
    page = shown("inspect")
    maps, large = ".map canvas", ".detail canvas"
    before = drawn(page, maps)
    page.locator(".slide input").press("End")
    assert page.inner_text(".slide output") == "t = 900"
    assert drawn(page, maps) != before
    before = drawn(page, maps)
    page.locator(".chip").first.click()
    assert drawn(page, maps) != before
    before, words = drawn(page, maps), page.inner_text(".query output")
    page.locator(".query canvas").click(position={"x": 3, "y": 3})
    assert page.inner_text(".query output") == "token 0 of 49" != words
    assert drawn(page, maps) != before
    page.locator(".query canvas").press("ArrowRight")
    assert page.inner_text(".query output") == "token 1 of 49"
    before = drawn(page, large)
    page.locator(".map").nth(2).click()
    assert page.get_attribute(".map >> nth=2", "aria-pressed") == "true"
    assert page.inner_text(".detail h3") == "head 2"
    assert drawn(page, large) != before


def test_word_layer_step_and_head_change_the_maps_of_a_prompt(shown):
    page = shown("prompt")
    maps = ".map canvas"
    chips = page.locator(".chip input[name=word]")
    assert chips.count() == len(json.loads(page.inner_text(".explorer script"))["prompt"]) > 4
    seen = {drawn(page, maps)}
    page.locator(".chip", has_text="seven").first.click()
    seen.add(drawn(page, maps))
    page.locator(".chip input[name=layer]").first.evaluate("radio => radio.click()")
    seen.add(drawn(page, maps))
    page.locator(".slide input").press("End")
    seen.add(drawn(page, maps))
    assert len(seen) == 4
    assert page.inner_text(".query output") == "seven (CLIP)"
    page.locator(".map").nth(2).click()
    assert page.inner_text(".detail h3") == "head 2"
    assert re.search(r"[\d.e+-]+% of image token \d+", page.inner_text(".readout"))


def test_the_numbers_read_are_those_recorded(shown):
    """A row of attention sums to 1: what the page says of every key of a map does so, too, to the bytes' precision."""
    page = shown("inspect")
    canvas = page.locator(".detail canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    total = 0.0
    for y in range(7):
        for x in range(7):
            page.mouse.move(box["x"] + (x + 0.5) * box["width"] / 7, box["y"] + (y + 0.5) * box["height"] / 7)
            total += float(re.search(r"here: ([\d.e+-]+)%", page.inner_text(".readout"))[1])
    assert total == pytest.approx(100, abs=3)


def test_a_word_of_a_text_is_the_query_and_the_numbers_read_are_a_row(shown):
    """What the page says of every key of a row sums to 1, and no key after its query has a share."""
    page = shown("text")
    maps = ".map canvas"
    assert page.locator(".map").count() == 4 + 2 and page.locator(".words span").count() == 24
    assert page.inner_text(".query output").startswith("token 23 ")
    before = drawn(page, maps)
    page.locator(".words span").nth(5).click()
    assert page.inner_text(".query output").startswith("token 5 ")
    assert drawn(page, maps) != before, "its row is framed"
    bars = "spans => spans.map(span => parseFloat(span.style.getPropertyValue('--bar')))"
    heights = page.eval_on_selector_all(".words span", bars)
    assert min(heights[:6]) > 0 and max(heights[6:]) == 0
    page.locator(".words").press("ArrowRight")
    assert page.inner_text(".query output").startswith("token 6 ")
    canvas = page.locator(".detail canvas")
    canvas.press("ArrowLeft")
    total = 0.0
    for _ in range(24):
        assert page.inner_text(".readout").startswith("from token 6 ")
        total += float(re.search(r"here: ([\d.e+-]+)%", page.inner_text(".readout"))[1])
        canvas.press("ArrowRight")
    assert total == pytest.approx(100, abs=5)
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] / 2, "y": box["height"] * 2.5 / 24})
    assert page.inner_text(".query output").startswith("token 2 ")


def test_a_chart_reads_its_numbers_by_pointer_and_keys(shown):
    page = shown("plot")
    chart = page.locator("svg.chart").first
    chart.hover()
    assert re.search(r"run_[ab], step [\d.]+: [\d.]+", page.inner_text(".tip"))
    page.mouse.move(0, 0)
    chart.focus()
    page.keyboard.press("ArrowRight")
    first = page.inner_text(".tip")
    page.keyboard.press("ArrowRight")
    second = page.inner_text(".tip")
    assert second != first
    page.keyboard.press("ArrowDown")
    assert {page.inner_text(".tip").split(",")[0], second.split(",")[0]} == {"run_a", "run_b"}


def test_a_table_is_sorted_by_a_heading_and_keeps_its_teacher_and_scale(shown):
    page = shown("demo")
    column = "tr => [...tr].map(row => row.cells[0].textContent)"
    rows = "#figures tbody tr"
    assert page.eval_on_selector_all(rows, column) == [
        "teacher", "student, output only", "student, output + SHD", "real digits",
    ]  # fmt: skip
    page.locator("#figures th button", has_text="FD(digits)").click()
    assert page.eval_on_selector_all(rows, column) == [
        "teacher", "student, output + SHD", "student, output only", "real digits",
    ]  # fmt: skip


def test_a_figure_is_enlarged_and_escape_closes(shown):
    page = shown("evaluation", 390)
    button = page.locator("button.enlarge").first
    button.click()
    assert page.locator("dialog[open] img").count() == 1
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.evaluate("document.activeElement.className") == "enlarge"


def test_a_command_is_copied(shown, reader):
    page = shown("demo")
    reader.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("button.copy").last.click()
    assert "dit-shd train configs/digits_shd.yaml" in page.evaluate("navigator.clipboard.readText()")
    assert page.locator("button.copy").last.inner_text() == "copied"


def test_a_page_of_a_run_that_trains_comes_again_and_holds_still_when_asked(reader, tmp_path):
    run = RunLog("x", tmp_path, 9, [{"step": i, "loss": 1 / i} for i in range(1, 9)])
    write_run_page([run], tmp_path / "plot.html", reload_seconds=1)
    page = reader.show(tmp_path / "plot.html", 390)
    place = page.evaluate("() => { window.before = true; window.scrollTo(0, 60); return window.scrollY; }")
    with page.expect_event("load", timeout=10_000):
        pass
    assert page.evaluate("[window.before === undefined, window.scrollY]") == [True, place] != [True, 0]
    page.click("button.pause")
    page.evaluate("() => { window.before = true; }")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.before") and page.inner_text("button.pause") == "refresh again"


def test_a_printed_page_has_no_buttons_and_no_dark(shown):
    page = shown("demo", 820, dark=True)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("button.enlarge").first.is_hidden()
    page.emulate_media(media="screen")
