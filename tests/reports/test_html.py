"""Parts of pages."""

import numpy as np

from dit_shd.reports.html import scatter


def test_points_outside_are_told_from_those_inside():
    points = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.5]])
    svg = scatter(points, points, np.array([True, False, True]), 'a "title"')
    assert svg.count("<circle") == 6
    assert svg.split('class="outside"')[1].count("<circle") == 1
    assert "&quot;title&quot;" in svg
    assert "nan" not in scatter(points[:1], points[:1], np.array([True]), "one point")
