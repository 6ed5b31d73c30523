"""Curves of training."""

import numpy as np
import pytest

from dit_shd.reports.figures.training import points_of, smooth


@pytest.mark.parametrize("count", [1, 5, 100])
def test_the_strong_line_is_the_mean_of_its_window_also_after_an_explosion(count):
    values = np.concatenate([[1e18], 0.1 * 0.99 ** np.arange(count - 1)])
    found, half = smooth(values), int(0.04 * count)
    for i in range(count):
        window = values[max(i - half, 0) : i + half + 1]
        assert found[i] == pytest.approx(sum(window) / len(window), rel=1e-12)


def test_rows_without_a_number_are_no_points():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2}, {"step": 3, "loss": "x"}, {"step": 4, "loss": None}]
    xs, ys = points_of([*rows, {"step": 5, "loss": float("nan")}, {"step": 6, "loss": 1}], "loss")
    assert (xs.tolist(), ys.tolist()) == ([1, 6], [2, 1])
