"""Charts: places of values against their axes, ticks, and what reads them."""

import re
from xml.etree import ElementTree

import pytest

from dit_shd.reports.figures.chart import LEFT, RIGHT, SIZE, Axis, Chart, short, svg_file


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis("x", 0, 10), [0, 2, 4, 6, 8, 10]),
        (Axis("x", -0.04, 1.04), [0, 0.25, 0.5, 0.75, 1]),
        (Axis("x", 10, 0), [0, 2, 4, 6, 8, 10]),
        (Axis("x", 1, 1000, log=True), [1, 3, 10, 30, 100, 300, 1000]),
        (Axis("x", 0.1, 3, log=True), [0.1, 0.2, 0.5, 1, 2]),
        (Axis.of("x", ["a", "b"]), [0, 1]),
    ],
)
def test_ticks_are_round_and_inside(axis, ticks):
    assert axis.ticks() == pytest.approx(ticks)


def test_every_axis_has_ticks_and_room():
    for values in ([], [3.0], [0.0, 0.0], [1e-9, 1e9], [-5, 5], [float("nan"), 2.0]):
        for log in (False, True):
            axis = Axis.around("x", values, log=log)
            assert axis.low < axis.high
            assert 2 <= len(axis.ticks()) <= 12, (values, log)
            for value in (v for v in values if v == v):
                assert 0 < axis.share(value) < 1


@pytest.mark.parametrize("ends", [(12345.1, 12345.3), (1.23456, 1.23457), (100.0001, 100.0002), (-5e4, 5e4), (0, 1)])
def test_ticks_can_be_told_apart(ends):
    axis = Axis.around("x", ends)
    texts = [axis.text(tick) for tick in axis.ticks()]
    assert len(set(texts)) == len(texts) > 2 and max(map(len, texts)) < 12


def test_numbers_at_the_ends_of_floats_have_an_axis():
    for values, log in (([-1e308, 1e308], False), ([5e-324, 1e-323], True), ([1e-310, 1e308], True)):
        axis = Axis.around("x", values, log=log)
        assert axis.low < axis.high and axis.ticks() and all(axis.text(tick) for tick in axis.ticks())


def test_a_name_that_is_too_long_for_its_chart_is_cut():
    chart = Chart("t", Axis("x", 0, 1), Axis("y", 0, 1))
    chart.words(0.5, 0.5, "m" * 80)
    (text,) = re.findall(r">(m+…)<", chart.svg())
    assert 10 < len(text) < 40


def test_points_lie_where_their_values_are_and_can_be_read_back():
    chart = Chart("t", Axis("step", 0, 100), Axis("loss", 1, 100, log=True))
    chart.line([0, 50, 100], [1, 10, 100], "s0", "a <run>")
    svg = ElementTree.fromstring(chart.svg())
    (line,) = svg.iter("polyline")
    assert line.get("data-name") == "a <run>"
    xs, ys = zip(*(map(float, point.split(",")) for point in line.get("points").split()))
    assert xs == pytest.approx((LEFT, (LEFT + SIZE[0] - RIGHT) / 2, SIZE[0] - RIGHT), abs=0.06)
    low, high, first, last, log = map(float, svg.get("data-y").split())
    assert log == 1
    for y, value in zip(ys, (1, 10, 100)):
        assert low * (high / low) ** ((y - first) / (last - first)) == pytest.approx(value, rel=2e-3)


def test_what_is_not_finite_or_not_above_zero_is_left_out_of_a_line():
    chart = Chart("t", Axis("x", 0, 3), Axis("y", 1, 10, log=True))
    chart.line([0, 1, 2, 3], [2, float("nan"), 0, 5], "s0")
    assert len(re.search(r'points="([^"]*)"', chart.svg())[1].split()) == 2


def test_words_are_escaped_and_stay_inside():
    chart = Chart("<t>", Axis("x", 0, 1), Axis("y", 0, 1))
    chart.dot(1, 1, "s0", 'a "<dot>"')
    chart.words(1, 1, "a long name of a model")
    svg = ElementTree.fromstring(chart.svg())
    assert next(svg.iter("circle")).get("data-tip") == 'a "<dot>"'
    assert [t.get("text-anchor") for t in svg.iter("text") if t.text.startswith("a long")] == ["end"]


def test_a_file_of_charts_stands_alone():
    charts = [Chart(str(i), Axis("x", 0, 1), Axis("y", 0, 1)) for i in range(4)]
    root = ElementTree.fromstring(svg_file(charts, columns=3))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    inner = [each for each in root if each.get("class") == "chart"]
    assert [(each.get("x"), each.get("y")) for each in inner] == [
        ("0", "0"), ("360", "0"), ("720", "0"), ("0", "236"),
    ]  # fmt: skip
    assert "prefers-color-scheme" not in svg_file(charts)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1000, "1000"),
        (400_000, "400k"),
        (2e6, "2M"),
        (5e-4, "5e-4"),
        (1e-10, "1e-10"),
        (2.5e-4, "2.5e-4"),
        (-7.5e-5, "-7.5e-5"),
    ],
)
def test_numbers_of_ticks_are_short(value, text):
    assert short(value) == text


@pytest.mark.parametrize(("low", "high"), [(0, 1e-4), (0, 1e-3), (3.1e-4, 3.4e-4)])
def test_a_small_tick_says_where_it_stands(low, high):
    """2.5e-4 was written 3e-4, and of 3.1e-4 to 3.4e-4 all were."""
    axis = Axis.around("", [low, high])
    for tick in axis.ticks():
        assert float(axis.text(tick)) == pytest.approx(tick)


@pytest.mark.parametrize(
    ("names", "shown"), [(["0|1", "2|3"], 2), ([f"{i} long name of merged heads" for i in range(10)], 2)]
)
def test_names_below_a_chart_have_room_beside_each_other(names, shown):
    """Those of merges of many heads had been printed over each other."""
    svg = Chart("alpha", Axis.of("merge", names), Axis("share", 0, 1)).svg()
    assert sum(f">{name}<" in svg for name in names) == shown
