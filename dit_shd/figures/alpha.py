"""The weights alpha of pairwise merges: by layer, and by timestep."""

from collections.abc import Sequence
from typing import Any

from dit_shd.figures import COLOURS, png
from dit_shd.inspection import LayerSqueeze


def alpha_figure(layers: Sequence[LayerSqueeze], steps: int = 1000, dark: bool = False) -> bytes:
    """A column for each layer: the histogram of alpha, and alpha against the timestep, merge by merge."""

    def draw(figure: Any) -> None:
        axes = figure.subplots(2, len(layers), squeeze=False, sharex="row", sharey="row")
        for column, layer in enumerate(layers):
            top, below = axes[:, column]
            top.set_title(layer.layer.removesuffix(".attn"), fontsize=9)
            for merge, alphas in enumerate(layer.alpha.T):
                colour = COLOURS[merge % len(COLOURS)]
                words = f"into student head {merge + 1}"
                top.hist(alphas, bins=20, range=(0, 1), color=colour, alpha=0.6, label=words)
                below.scatter(layer.t, alphas, color=colour, s=4, alpha=0.6, linewidths=0)
            top.set_xlabel("alpha")
            below.set_xlabel("timestep")
            below.set_xlim(0, steps)
            below.set_ylim(-0.03, 1.03)
            for ax in (top, below):
                ax.tick_params(labelsize=8)
        axes[0, 0].set_ylabel("images")
        axes[1, 0].set_ylabel("alpha")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=9)

    return png(draw, (max(1.75 * len(layers), 4.0), 3.9), dark)
