"""Figures of a study: every loss term has a chart."""

from dit_shd.reports.figures.study import curve_charts

TERMS = ("noise", "output", "shd", "minilmv2", "feature", "vkd", "a2d")


def test_every_term_of_any_run_has_a_chart():
    """In the order in which the runs bring them; each variant has other losses."""
    curves = {
        term: [{"step": [1, 2], "plain/noise": [1, 1], f"plain/{term}": [3, 2], "masked/noise": [1, 1]}]
        for term in TERMS
    }
    assert [chart.title for chart in curve_charts(curves)] == [f"plain/{term}" for term in TERMS]
    assert curve_charts({}) == []
