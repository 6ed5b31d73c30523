"""Parts of pages: escaped, listed, linked, and closed to everything from elsewhere."""

import base64
import hashlib
import re

from pages import words_of

from dit_shd.reports.html import Link, header, page_html, paragraph, picture, script, section
from dit_shd.reports.tables import facts, table_html


def test_a_page_lists_its_sections_and_lets_in_its_own_script_alone():
    page = page_html("x", [section(f"Part {i} <b>", paragraph("&")) for i in range(4)])
    words = words_of(page)
    for i in range(4):
        assert f'<a href="#part-{i}-b">Part {i} &lt;b&gt;</a>' in words
        assert f'<section id="part-{i}-b">' in words
    assert "<p>&amp;</p>" in words
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert "details" not in words_of(page_html("x", [section("one", "")]))


def test_the_finding_stands_below_the_title_and_numbers_below_it():
    words = header("kind", "a <title>", ["31% lower <FD>"], {"of parameters": "0.26"})
    places = [words.index(part) for part in ("a &lt;title&gt;", "31% lower &lt;FD&gt;", "<b>0.26</b>of parameters")]
    assert places == sorted(places)


def test_files_are_linked_relative_to_the_page_where_they_exist(tmp_path):
    (tmp_path / "a b.json").write_text("{}")
    page = tmp_path / "pages" / "x.html"
    shown = facts({"file": Link("a b.json", tmp_path / "a b.json"), "gone": Link("<no>", tmp_path / "no")}, page)
    assert '<a href="../a%20b.json">a b.json</a>' in shown
    assert "<code>&lt;no&gt;</code>" in shown and shown.count("<a ") == 1
    assert facts({"command": "dit-shd x"}, page).count("copy") == 2, "its class and its word"


def test_a_table_sorts_by_buttons_and_keeps_its_teacher_and_its_scale():
    long = "a long sentence that has to break into lines"
    words = table_html(
        [("model", ""), ("note", "small"), ("FD", "")], [["t", "", "1"], ["s", long, "2"], ["real", "", "0"]], scale=2
    )
    assert words.count('<button type="button">') == 3
    assert re.findall(r'<tr class="(\w+)">', words) == ["tinted", "scale"]
    assert words.count('<td class="words">') == 3, "the column with the long text"
    assert 'tabindex="0" role="region"' in words


def test_columns_are_named_above_a_picture():
    shown = picture(b"png", "an <alt>", "caption", columns=["0", "<1>"])
    assert "repeat(2, 1fr)" in shown and "<span>&lt;1&gt;</span>" in shown
    assert 'aria-label="enlarge: an &lt;alt&gt;"' in shown
