"""Figures of a study: every loss term has a chart, every seed a dot."""

import math
import re

from dit_shd.reports.figures.study import cost_chart, curve_charts, dot_chart

TERMS = ("noise", "output", "shd", "minilmv2", "feature", "vkd", "a2d")


def test_every_term_of_any_run_has_a_chart():
    """In the order in which the runs bring them; each variant has other losses."""
    curves = {
        term: [{"step": [1, 2], "plain/noise": [1, 1], f"plain/{term}": [3, 2], "masked/noise": [1, 1]}]
        for term in TERMS
    }
    assert [chart.title for chart in curve_charts(curves)] == [f"plain/{term}" for term in TERMS]
    assert curve_charts({}) == []


def test_the_mean_over_seeds_is_of_the_steps_that_they_share():
    """A seed that goes on, or was broken off, has fewer; one may have logged others."""
    runs = [
        {"step": [10, 20, 30], "plain/noise": [3.0, 2.0, 1.0]},
        {"step": [20, 10], "plain/noise": [4.0, 5.0]},
    ]
    (chart,) = curve_charts({"a": runs})
    (strong,) = re.findall(r'<polyline class="s0" points="([^"]*)" data-name="a"', chart.svg())
    ends = [chart.place(10, 4.0), chart.place(20, 3.0)]
    assert strong == " ".join(f"{x:.1f},{y:.1f}" for x, y in ends)


def test_a_figure_that_is_infinite_is_said_and_not_drawn():
    """As of a run that diverged: no browser draws cx="inf"."""
    svg = dot_chart({"a": {0: 2.0, 1: math.inf, 2: math.nan}, "b": {0: math.inf}, "c": {}}, "FD").svg()
    assert not re.search(r'="-?(inf|nan)"', svg)
    assert "a  (n = 3, not drawn: inf, nan)" in svg and "b  (n = 1, not drawn: inf)" in svg and "c  (n = 0)" in svg
    assert len(re.findall("<circle", svg)) == 1
    svg = cost_chart({"a": (3.0, math.inf, math.nan), "b": (3.0, 2.0, 0.1)}, "FD").svg()
    assert len(re.findall("<circle", svg)) == 1 and not re.search(r'="-?(inf|nan)"', svg)
    svg = cost_chart({"a": (math.nan, 2.0, 0.1), "b": (3.0, 2.0, 0.1)}, "FD").svg()
    assert len(re.findall("<circle", svg)) == 1 and "nan" not in svg
