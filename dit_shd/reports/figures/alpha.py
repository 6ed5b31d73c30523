"""The weights alpha of pairwise merges: by layer, and by timestep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dit_shd.analysis.agreement import LayerSqueeze
from dit_shd.analysis.survey import LayerSurvey
from dit_shd.reports.figures.style import COLOURS, panels, panels_size, png
from dit_shd.squeezing.plans import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def alpha_figure(layers: Sequence[LayerSqueeze], steps: int = 1000, dark: bool = False) -> bytes:
    """A column for each layer: the histogram of alpha, and alpha against the timestep, merge by merge."""

    def draw(figure: "Figure") -> None:
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


def distribution_figure(layers: Sequence[LayerSurvey], dark: bool = False) -> bytes:
    """Alpha by layer, over merges, samples and timesteps: a vertical histogram with median and quartiles."""
    bins = 40

    def draw(figure: "Figure") -> None:
        ax = figure.subplots()
        for x, layer in enumerate(layers):
            counts, edges = np.histogram(layer.alpha, bins=bins, range=(0, 1))
            half = np.repeat(0.42 * counts / max(counts.max(), 1), 2)
            ax.fill_betweenx(np.repeat(edges, 2)[1:-1], x - half, x + half, color=COLOURS[1], alpha=0.55, linewidth=0)
            low, middle, high = np.quantile(layer.alpha, (0.25, 0.5, 0.75))
            ax.plot([x, x], [low, high], color=COLOURS[0], linewidth=2)
            ax.plot(x, middle, "o", color=COLOURS[0], markersize=5)
        ax.axhline(0.5, color=ax.xaxis.label.get_color(), linewidth=0.8, linestyle="--")
        ax.set_axisbelow(True)
        names = [layer.layer.removesuffix(".attn") for layer in layers]
        ax.set_xticks(range(len(layers)), names, rotation=40, ha="right", fontsize=8)
        ax.set_xlim(-0.6, len(layers) - 0.4)
        ax.set_ylim(-0.03, 1.03)
        ax.set_ylabel("alpha")
        ax.grid(axis="x", visible=False)

    return png(draw, (max(0.55 * len(layers) + 1.2, 4.0), 3.6), dark)


def timestep_figure(layers: Sequence[LayerSurvey], timesteps: Sequence[int], dark: bool = False) -> bytes:
    """Alpha against the timestep, a panel for each layer and a line for each merge: mean and one standard deviation."""

    def draw(figure: "Figure") -> None:
        import matplotlib

        for ax, layer in panels(figure, layers, sharex=True, sharey=True):
            merges = layer.alpha.shape[2]
            many = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, merges))
            colours = COLOURS if merges <= len(COLOURS) else many
            for colour, words, alpha in zip(colours, merge_names(layer.plan), layer.alpha.transpose(2, 0, 1)):
                mean, spread = alpha.mean(1), alpha.std(1)
                ax.fill_between(timesteps, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
                ax.plot(timesteps, mean, color=colour, linewidth=1.6, marker="o", markersize=2.5, label=words)
            ax.set_title(layer.layer.removesuffix(".attn"), fontsize=9)
            ax.set_ylim(-0.03, 1.03)
            ax.tick_params(labelsize=8)
        figure.supxlabel("timestep", fontsize=9)
        figure.supylabel("alpha", fontsize=9)
        if len({layer.plan for layer in layers}) == 1:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            words = [f"heads {label}" for label in labels]
            figure.legend(handles, words, loc="outside upper left", ncols=6, frameon=False, fontsize=8)

    wide, high = panels_size(len(layers), 2.1, 2.0)
    return png(draw, (max(wide, 4.0), high + 0.6), dark)


def merge_names(plan: Plan) -> list[str]:
    """The heads of each merge, in the order of Squeeze.alpha: alpha is the weight of the heads left of the |."""
    names = []
    for group in plan:
        heads = [str(head + 1) for head in group]
        names += [f"{'+'.join(heads[:i])} | {heads[i]}" for i in range(1, len(heads))]
    return names
