"""Similarity of the heads of a layer, and merge plans. Heads count from 0, as in a plan."""

from collections.abc import Sequence

import numpy as np

from dit_shd.analysis.survey import LayerSurvey
from dit_shd.reports.figures.alpha import short_layer
from dit_shd.reports.figures.chart import Axis, Chart
from dit_shd.reports.figures.heat import colour, heat_png, ink_on
from dit_shd.reports.html import data_uri

NUMBERS_UP_TO = 8
"""Largest number of heads for which the cosines are written into their cells."""
CELLS = 4000
"""Cells of a page that tell their numbers; where there are more, a layer is one picture."""


def lowest_cosine(layers: Sequence[LayerSurvey]) -> float:
    """The cosine where the colours begin."""
    return float(np.floor(10 * min(layer.cosines.min() for layer in layers)) / 10)


def similarity_charts(layers: Sequence[LayerSurvey]) -> list[Chart]:
    """Cosines of heads by layer; the contiguous plan as frames, the matched plan as dots."""
    low = lowest_cosine(layers)
    fine = sum(layer.heads**2 for layer in layers) <= CELLS
    return [_similarity(layer, low, fine) for layer in layers]


def _similarity(layer: LayerSurvey, low: float, fine: bool) -> Chart:
    h = layer.heads
    names = [str(head) for head in range(h)]
    x = Axis("head", -0.5, h - 0.5, names=names)
    y = Axis("head", h - 0.5, -0.5, names=names)
    chart = Chart(short_layer(layer.layer), x, y, (260, 260), square=True)
    if fine:
        _cells(chart, layer.cosines, low)
    else:
        chart.image(data_uri(heat_png((layer.cosines - low) / max(1 - low, 1e-9))))
    for group in layer.plan:
        ends = (min(group) - 0.5, max(group) + 0.5)
        chart.box(ends, ends, "frame")
    for group in layer.matched:
        for i, j in ((i, j) for i in group for j in group if i != j):
            chart.mark(j + 0.3, i - 0.3)
    return chart


def _cells(chart: Chart, cosines: np.ndarray, low: float) -> None:
    """A cell for every two heads, which tells its number."""
    h = len(cosines)
    for i in range(h):
        for j in range(h):
            value = float(cosines[i, j])
            fill = colour((value - low) / max(1 - low, 1e-9))
            words = f"heads {i} and {j}: cosine {value:.3f}"
            chart.box((j - 0.5, j + 0.5), (i - 0.5, i + 0.5), fill=fill, words=words)
            if h <= NUMBERS_UP_TO and i != j:
                text = f"{value:.2f}"[1:] if 0 <= value < 0.995 else f"{value:.2f}"
                chart.coloured_text(j, i, text, ink_on(fill))
