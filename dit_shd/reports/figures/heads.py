"""Similarity of the heads of a layer, and merge plans."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dit_shd.analysis.survey import LayerSurvey
from dit_shd.reports.figures.style import FRAME, panels, panels_size, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS_UP_TO = 8
"""Largest number of heads for which the cosines are written into their cells."""


def similarity_figure(layers: Sequence[LayerSurvey], dark: bool = False) -> bytes:
    """Cosines of heads by layer; the contiguous plan as frames, the matched plan as dots."""
    heads = max(layer.heads for layer in layers)
    low = np.floor(10 * min(layer.cosines.min() for layer in layers)) / 10
    inches = min(0.36 * heads + 0.7, 3.6)

    def draw(figure: "Figure") -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.patches import Rectangle

        for ax, layer in panels(figure, layers):
            h = layer.heads
            ax.imshow(layer.cosines, cmap="magma", vmin=low, vmax=1)
            ax.set_title(layer.layer.removesuffix(".attn"), fontsize=8, loc="left")
            ax.grid(False)
            every = 1 if h <= 12 else 4
            labels = [str(head + 1) for head in range(0, h, every)]
            ax.set_xticks(range(0, h, every), labels, fontsize=6.5)
            ax.set_yticks(range(0, h, every), labels, fontsize=6.5)
            for i, j in ((i, j) for i in range(h) for j in range(h) if h <= NUMBERS_UP_TO and i != j):
                value = layer.cosines[i, j]
                ax.text(j, i, f"{value:.2f}"[1:], ha="center", va="center", fontsize=5.5,
                        color="black" if value > low + 0.6 * (1 - low) else "white")  # fmt: skip
            for group in layer.plan:
                corner = (group[0] - 0.5, group[0] - 0.5)
                ax.add_patch(Rectangle(corner, len(group), len(group), fill=False, edgecolor=FRAME, linewidth=1.6))
            pairs = [(j + 0.3, i - 0.3) for group in layer.matched for i in group for j in group if i != j]
            if pairs:
                ax.plot(*zip(*pairs), "o", color="white", markeredgecolor="black", markersize=3.6, markeredgewidth=0.6)
        figure.colorbar(
            ScalarMappable(Normalize(low, 1), "magma"), ax=figure.axes, label="cosine", shrink=0.8, aspect=30, pad=0.01
        )

    return png(draw, panels_size(len(layers), inches, inches + 0.2), dark)
