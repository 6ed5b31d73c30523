"""Similarity of the heads of a layer, and merge plans. Heads count from 0, as in a plan."""

from collections.abc import Sequence

import numpy as np

from dit_shd.analysis.survey import LayerSurvey
from dit_shd.reports.figures.alpha import short_layer
from dit_shd.reports.figures.chart import Axis, Chart
from dit_shd.reports.figures.heat import colour, ink_on

NUMBERS_UP_TO = 8
"""Largest number of heads for which the cosines are written into their cells."""


def lowest_cosine(layers: Sequence[LayerSurvey]) -> float:
    """The cosine where the colours begin."""
    return float(np.floor(10 * min(layer.cosines.min() for layer in layers)) / 10)


def similarity_charts(layers: Sequence[LayerSurvey]) -> list[Chart]:
    """Cosines of heads by layer; the contiguous plan as frames, the matched plan as dots."""
    low = lowest_cosine(layers)
    return [_similarity(layer, low) for layer in layers]


def _similarity(layer: LayerSurvey, low: float) -> Chart:
    h = layer.heads
    names = [str(head) for head in range(h)]
    x = Axis("head", -0.5, h - 0.5, names=names)
    y = Axis("head", h - 0.5, -0.5, names=names)
    chart = Chart(short_layer(layer.layer), x, y, (260, 260), square=True)
    for i in range(h):
        for j in range(h):
            value = float(layer.cosines[i, j])
            fill = colour((value - low) / max(1 - low, 1e-9))
            words = f"heads {i} and {j}: cosine {value:.3f}"
            chart.box((j - 0.5, j + 0.5), (i - 0.5, i + 0.5), fill=fill, words=words)
            if h <= NUMBERS_UP_TO and i != j:
                text = f"{value:.2f}"[1:] if 0 <= value < 0.995 else f"{value:.2f}"
                chart.coloured_text(j, i, text, ink_on(fill))
    for group in layer.plan:
        ends = (min(group) - 0.5, max(group) + 0.5)
        chart.box(ends, ends, "frame")
    for group in layer.matched:
        for i, j in ((i, j) for i in group for j in group if i != j):
            chart.mark(j + 0.3, i - 0.3)
    return chart
