"""Generated images, and the numbers of training by step."""

from collections.abc import Mapping, Sequence

import numpy as np

from dit_shd.data.pixels import grid
from dit_shd.reports.figures.chart import SIZE, SMALL, Axis, Chart, series_css
from dit_shd.reports.html import png

Rows = Sequence[Mapping[str, float]]
"""Rows of a metrics.jsonl."""
POINTS = 320
"""Points of a curve; more are averaged in intervals."""


def grid_figure(images: np.ndarray, columns: int = 10, enlarge: int = 3) -> bytes:
    """Images uint8 [n,y,x,c], row by row, every pixel enlarged."""
    sheet = grid(images, columns, gap=1)
    return png(sheet.resize((sheet.width * enlarge, sheet.height * enlarge), resample=0))


def term_charts(
    curves: Mapping[str, Rows], terms: Mapping[str, str], log: bool = True, small: bool = False, points: int = POINTS
) -> list[Chart]:
    """A chart for each term (key of metrics.jsonl -> title) with every run that logged it, faint and as a running mean.

    Args:
        curves: Run -> its rows.
        terms: Key -> title.
        log: Whether the scale is logarithmic, where all values are above 0.
        small: Whether the charts are for a row of small ones.
        points: The number of points of a curve at most.
    """
    drawn = []
    for key, title in terms.items():
        pairs = {name: points_of(rows, key, points) for name, rows in curves.items()}
        logged = {name: pair for name, pair in pairs.items() if len(pair[0])}
        if not logged:
            continue
        values = np.concatenate([ys for _, ys in logged.values()])
        last = max(float(xs[-1]) for xs, _ in logged.values())
        axes = Axis("step", 0, max(last, 1.0)), Axis.around("", values, log=log)
        chart = Chart(title, *axes, SMALL if small else SIZE)
        for name, (xs, ys) in logged.items():
            css = series_css(list(curves).index(name))
            smoothed = smooth(ys)
            if not np.allclose(smoothed, ys):
                chart.line(xs, ys, f"{css} faint")
            chart.line(xs, smoothed, css, name)
            if len(xs) == 1:
                chart.dot(xs[0], ys[0], css, f"{name}, step {xs[0]:g}: {ys[0]:.4g}")
        drawn.append(chart)
    return drawn


def points_of(rows: Rows, key: str, count: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one number where it was logged; means of intervals beyond `count` points."""
    numbers = ((row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float)))
    pairs = np.array([*numbers], dtype=float).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(1)]
    if len(pairs) > count:
        pairs = np.stack([part.mean(0) for part in np.array_split(pairs, count)])
    return pairs[:, 0], pairs[:, 1]


def smooth(values: np.ndarray) -> np.ndarray:
    """A running mean over about 8% of the points, shorter at both ends."""
    half = int(len(values) * 0.04)
    windows = (values[max(i - half, 0) : i + half + 1] for i in range(len(values)))  # not by sums, which lose digits
    return np.array([window.mean() for window in windows])


def run_legend(curves: Mapping[str, object]) -> dict[str, str]:
    """Run -> the classes of its lines."""
    return {name: series_css(i) for i, name in enumerate(curves)}
