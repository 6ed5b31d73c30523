"""Variants over their seeds: dots, curves, cost against quality."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dit_shd.reports.figures.chart import SIZE, Axis, Chart, series_css
from dit_shd.reports.tables import number

Dots = Mapping[str, Mapping[int, float]]
"""Variant -> seed -> value."""
Curve = Mapping[str, Sequence[float | None]]
"""Term -> its values at curve["step"], None where it has none."""
PLACES = 34
"""Pixels of a variant in the chart of dots."""


def dot_chart(dots: Dots, name: str) -> Chart:
    """A line for each variant: its name, a dot for each seed, and a bar at the mean; of what is finite."""
    values = [value for seeds in dots.values() for value in seeds.values()]
    count = max(len(dots), 1)
    y = Axis("", count - 0.4, -0.75, names=[""] * count)
    chart = Chart(name, Axis.around(name, values), y, (SIZE[0], PLACES * count + 70))
    for line, (variant, seeds) in enumerate(dots.items()):
        finite = {seed: value for seed, value in seeds.items() if math.isfinite(value)}
        missing = ", ".join(f"{value:g}" for value in seeds.values() if not math.isfinite(value))
        more = f", not drawn: {missing}" if missing else ""
        chart.words(chart.x.low, line - 0.38, f"{variant}  (n = {len(seeds)}{more})")
        for seed, value in finite.items():
            chart.dot(value, line, series_css(line), f"{variant}, seed {seed}: {name} {number(value)}")
        if finite and not missing:
            chart.tick(float(np.mean(list(finite.values()))), line, "sink", 18)
    return chart


def curve_charts(curves: Mapping[str, Sequence[Curve]]) -> list[Chart]:
    """A chart for each loss term: every seed faint, the mean over seeds strong."""
    drawn = []
    for term in _terms(curves):
        logged = {v: [run for run in runs if term in run] for v, runs in curves.items()}
        values = [value for runs in logged.values() for run in runs for value in run[term] if value is not None]
        steps = [step for runs in logged.values() for run in runs for step in run["step"] if step is not None]
        chart = Chart(term, Axis("training step", 0, max(steps, default=1)), Axis.around("", values, log=True))
        for i, (variant, runs) in enumerate(logged.items()):
            by_step = [dict(zip(*_points(run["step"], run[term]))) for run in runs]
            for run in by_step:
                chart.line(run.keys(), run.values(), f"{series_css(i)} faint")
            shared = sorted(set.intersection(*map(set, by_step))) if by_step else []
            mean = [float(np.mean([run[step] for run in by_step])) for step in shared]
            chart.line(shared, mean, series_css(i), variant)
        drawn.append(chart)
    return drawn


def _points(steps: Sequence[float | None], values: Iterable[float | None]) -> tuple[list[float], list[float]]:
    """The points of a line that has values: not of a loss that has ended, nor of a step that was left out."""
    points = np.array([*zip(steps, values)], dtype=float).reshape(-1, 2)  # None becomes NaN
    known = points[~np.isnan(points).any(1)]
    return known[:, 0].tolist(), known[:, 1].tolist()


def _terms(curves: Mapping[str, Sequence[Curve]]) -> list[str]:
    """Every loss term of the first pass (plain/noise, plain/shd, ...) of any run, as the runs bring them."""
    logged = list(dict.fromkeys(term for runs in curves.values() for run in runs for term in run if term != "step"))
    return [term for term in logged if term.partition("/")[0] == logged[0].partition("/")[0]]


def cost_chart(points: Mapping[str, tuple[float, float, float]], name: str) -> Chart:
    """Cost against quality, where it is finite.

    Args:
        points: Variant -> mean CPU seconds of training, mean and standard deviation of the figure.
        name: The figure.
    """
    colours = {variant: series_css(i) for i, variant in enumerate(points)}
    points = {v: point for v, point in points.items() if math.isfinite(point[0]) and math.isfinite(point[1])}
    spans = {v: 0.0 if np.isnan(deviation) else deviation for v, (_, _, deviation) in points.items()}
    ends = [mean + side * spans[v] for v, (_, mean, _) in points.items() for side in (-1, 1)]
    x = Axis.around("CPU seconds of training", [cost for cost, _, _ in points.values()], pad=0.15)
    chart = Chart(f"{name} against training", x, Axis.around(name, ends, pad=0.12))
    for variant, (cost, mean, _) in points.items():
        css = colours[variant]
        if spans[variant]:
            chart.stem(cost, mean - spans[variant], mean + spans[variant], css)
        chart.dot(cost, mean, css, f"{variant}: {name} {number(mean)} after {cost:.0f} CPU s", radius=5)
        chart.words(cost, mean, variant, shift=9)
    return chart
