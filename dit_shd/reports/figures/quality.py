"""Quality against what it costs: one chart for each cost."""

import math
from collections.abc import Sequence

from dit_shd.reports.figures.chart import Axis, Chart
from dit_shd.reports.tables import Row, direction, number

COSTS = {
    "parameters": ("M parameters", 1e-6),
    "flops": ("GFLOPs, one image", 1e-9),
    "latency_ms": ("latency, ms per image", 1.0),
}
"""Field of Cost -> (label, factor)."""


def quality_charts(rows: Sequence[Row], name: str, real: float | None = None) -> list[Chart]:
    """A dot for each model: a figure against parameters, operations and latency.

    Args:
        rows: Of the table of figures, the teacher's first; those without cost, or a finite figure, are left out.
        name: The figure.
        real: The score of real images, as a line.
    """
    costed = [row for row in rows if row.cost is not None and math.isfinite(row.figures.get(name, math.nan))]
    if len(costed) < 2:
        return []
    values = [v for row in costed for v in _ends(row, name)] + ([] if real is None else [real])
    y = Axis.around(", ".join(filter(None, (name, direction(name)))), values, pad=0.12)
    drawn = []
    for field, (label, factor) in COSTS.items():
        costs = [factor * getattr(row.cost, field) for row in costed]
        x = Axis.around(label, [0.0, *costs], pad=0.1)
        chart = Chart(f"{name} against {label.partition(',')[0].removeprefix('M ')}", Axis(label, 0.0, x.high), y)
        if real is not None:
            chart.rule(real, "real images")
        for i, (row, cost) in enumerate(zip(costed, costs)):
            css = "sink" if row is rows[0] else f"s{(i - 1) % 6}"
            low, high = _ends(row, name)
            if low < high:
                chart.stem(cost, low, high, css)
            words = f"{row.name}: {name} {number(row.figures[name])} at {cost:.3g} {label}"
            chart.dot(cost, row.figures[name], css, words, radius=5)
            chart.words(cost, row.figures[name], row.name, shift=9)
        drawn.append(chart)
    return drawn


def _ends(row: Row, name: str) -> tuple[float, float]:
    value, spread = row.figures[name], row.spread.get(name, 0.0)
    return value - spread, value + spread
