"""Variants over their seeds: dots, curves, cost against quality."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dit_shd.reports.figures.style import PANELS, panels, panels_size, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Dots = Mapping[str, Mapping[int, float]]
"""Variant -> seed -> value."""
Curve = Mapping[str, Sequence[float]]
"""Term -> its values at curve["step"]."""


def dot_figure(dots: Dots, name: str, dark: bool = False) -> bytes:
    """A line for each variant: a dot for each seed, in the seed's colour, and a bar at the mean."""
    seeds = sorted({seed for values in dots.values() for seed in values})

    def draw(figure: "Figure") -> None:
        ax = figure.subplots()
        colours = _colours(len(seeds))
        for line, values in enumerate(dots.values()):
            for seed, value in values.items():
                place = seeds.index(seed)
                height = line + 0.12 * (place - (len(seeds) - 1) / 2) / max(1, len(seeds) / 4)
                ax.plot([value], [height], "o", color=colours[place], markersize=5, alpha=0.9)
            if values:
                mean = np.mean(list(values.values()))
                ax.plot([mean, mean], [line - 0.32, line + 0.32], color=ax.yaxis.label.get_color(), linewidth=2)
        for place, seed in enumerate(seeds):
            ax.plot([], [], "o", color=colours[place], markersize=5, label=f"seed {seed}")
        ax.set_yticks(range(len(dots)), list(dots))
        ax.invert_yaxis()
        ax.set_xlabel(name)
        if seeds:
            ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return png(draw, (7.6, 1.0 + 0.42 * len(dots)), dark)


def curves_figure(curves: Mapping[str, Sequence[Curve]], dark: bool = False) -> bytes:
    """A panel for each loss term: every seed thin, the mean over seeds thick."""
    terms = _terms(curves)
    colours = dict(zip(curves, _colours(len(curves))))

    def draw(figure: "Figure") -> None:
        for ax, term in panels(figure, terms):
            for variant, runs in curves.items():
                logged = [run for run in runs if term in run]
                for run in logged:
                    ax.plot(run["step"], run[term], color=colours[variant], alpha=0.25, linewidth=0.7)
                if logged and len({len(run[term]) for run in logged}) == 1:
                    mean = np.mean([run[term] for run in logged], axis=0)
                    ax.plot(logged[0]["step"], mean, color=colours[variant], linewidth=1.8, label=variant)
            ax.set_title(term)
            ax.set_xlabel("training step")
            ax.set_yscale("log")
            ax.tick_params(labelsize=8)
            if ax.get_legend_handles_labels()[0]:
                ax.legend(frameon=False, fontsize=7)

    return png(draw, panels_size(len(terms), 3.9, 3.2), dark)


def _terms(curves: Mapping[str, Sequence[Curve]]) -> list[str]:
    """Every loss term of the first pass (plain/noise, plain/shd, ...), in the order of the run that has the most."""
    logged = [[term for term in run if term != "step"] for runs in curves.values() for run in runs]
    most = max(logged, key=len, default=[])
    return [term for term in most if term.partition("/")[0] == most[0].partition("/")[0]][:PANELS] or [""]


def cost_figure(points: Mapping[str, tuple[float, float, float]], name: str, dark: bool = False) -> bytes:
    """Cost against quality.

    Args:
        points: Variant -> mean CPU seconds of training, mean and standard deviation of the figure.
        name: The figure.
        dark: Whether it is for a dark page.
    """

    def draw(figure: "Figure") -> None:
        ax = figure.subplots()
        for (variant, (cost, mean, deviation)), colour in zip(points.items(), _colours(len(points))):
            bar = None if np.isnan(deviation) else deviation
            ax.errorbar([cost], [mean], yerr=bar, fmt="o", color=colour, capsize=3, label=variant)
        ax.set_xlabel("CPU seconds of training")
        ax.set_ylabel(name)
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return png(draw, (7.6, 3.6), dark)


def _colours(count: int) -> list[tuple[float, float, float, float]]:
    """`count` distinct colours."""
    import matplotlib

    return [matplotlib.colormaps["tab10" if count <= 10 else "tab20"](i % 20) for i in range(count)]
