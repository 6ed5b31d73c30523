"""Attention maps of single heads over the tokens of a text, and alpha by layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dit_shd.analysis.survey import LayerMaps, LayerSurvey
from dit_shd.reports.figures.style import COLOURS, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELLED = 24
"""Largest number of tokens that are all written out; of more, every second or third one is."""


def token_maps_figure(layer: LayerMaps, heads: Sequence[int], labels: Sequence[str], dark: bool = False) -> bytes:
    """A map [n,n] of each head: query tokens down, key tokens across, one scale (square root) for all.

    Args:
        layer: Its rows are those of all tokens.
        heads: Their numbers, from 0.
        labels: The text of each token [n].
        dark: Whether it is for a dark page.
    """
    maps = layer.rows.transpose(1, 0, 2)[list(heads)]  # [heads,n,m]
    every = -(-len(labels) // LABELLED)
    ticks, words = range(0, len(labels), every), [_legible(label) for label in labels[::every]]

    def draw(figure: "Figure") -> None:
        from matplotlib.colors import PowerNorm

        axes = figure.subplots(1, len(heads), squeeze=False)[0]
        for i, (ax, head, picture) in enumerate(zip(axes, heads, maps)):
            ax.imshow(picture, cmap="magma", norm=PowerNorm(0.5, 0, float(maps.max())))
            ax.set_title(f"head {head + 1}", loc="left", fontsize=9)
            ax.set_xticks(ticks, words, rotation=90, fontsize=6)
            ax.set_yticks(ticks, words if i == 0 else [""] * len(words), fontsize=6)
            ax.grid(False)

    return png(draw, (3.2 * len(heads) + 0.6, 3.9), dark)


def alpha_by_layer_figure(layers: Sequence[LayerSurvey], dark: bool = False) -> bytes:
    """Mean alpha of each merge of a layer, with the standard deviation over samples."""

    def draw(figure: "Figure") -> None:
        ax = figure.subplots()
        most = max(layer.alpha.shape[2] for layer in layers)
        for merge in range(most):
            having = [(x, layer.alpha[..., merge]) for x, layer in enumerate(layers) if merge < layer.alpha.shape[2]]
            places = [x + (merge - (most - 1) / 2) * 0.6 / most for x, _ in having]
            means, spreads = ([np.mean(a) for _, a in having], [np.std(a) for _, a in having])
            ax.errorbar(
                places, means, spreads, fmt="o", markersize=4, linewidth=1.2, color=COLOURS[merge % len(COLOURS)]
            )
        ax.axhline(0.5, color=ax.xaxis.label.get_color(), linewidth=0.8, linestyle="--")
        ax.set_xticks(range(len(layers)), [str(x + 1) for x in range(len(layers))], fontsize=8)
        ax.set_xlabel("layer")
        ax.set_ylabel("alpha")
        ax.set_ylim(-0.03, 1.03)
        ax.grid(axis="x", visible=False)

    return png(draw, (max(0.5 * len(layers) + 1.2, 4.0), 3.4), dark)


def _legible(label: str) -> str:
    """A token as text that shows its spaces and lines, and no formula to matplotlib."""
    return repr(label)[1:-1].replace(" ", "·").replace("$", r"\$")
