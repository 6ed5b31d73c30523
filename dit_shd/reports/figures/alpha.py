"""The weights alpha of pairwise merges: each merge by itself, by layer and by timestep.

Heads count from 0, as in a plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dit_shd.reports.figures.chart import Axis, Chart, series_css

BINS, FEW_BINS = 25, 12
FINE = 96
"""Merges of a page up to which every bar of a histogram tells its number; beyond, a histogram is an outline."""
SHARE = Axis("alpha", -0.04, 1.04)
EVEN = "The dashed line is plain averaging of all heads: a half of two, two thirds where a third one joins them."
NOT_MERGED = "With as many student heads as heads nothing is merged: there is no alpha."
SHARES = (
    "Clamped: alphas of the layer outside of 0 to 1 before clamping. Residual: the norm of the error of the layer's "
    "merged heads' output, relative to the heads' output."
)
WIDE_FROM = 9
"""Merges from which a chart of a layer is wide."""


def merges_explained(samples: str) -> str:
    """What a chart of every merge's alphas shows.

    Args:
        samples: For each of what there is an alpha: "8 sequences".
    """
    return (
        "The weight alpha of the first heads of each merge (heads left of the bar), in closed form for each of "
        f"{samples}, of the contiguous plan: a column for each merge. {EVEN} A spread means that no constant fits. "
        "Dot: median; bar: quartiles."
    )


@dataclass(frozen=True, eq=False)
class LayerAlpha:
    """Alphas of one layer as its charts show them."""

    layer: str
    merges: Sequence[str]
    """The heads of each merge, see plans.merge_names."""
    alpha: np.ndarray
    """[samples,merges], at all timesteps."""
    t: np.ndarray
    """[samples]"""

    @property
    def even(self) -> np.ndarray:
        """[merges], the alphas by which all heads weigh alike: of i heads with one more i/(i+1)."""
        heads = np.array([merge.partition("|")[0].count("+") + 1 for merge in self.merges])
        return heads / (heads + 1)


def alpha_charts(layers: Sequence[LayerAlpha]) -> list[Chart]:
    """For each layer a column for each merge: a histogram on its side, with median and quartiles."""
    fine = sum(len(layer.merges) for layer in layers) <= FINE
    return [_distributions(layer, fine) for layer in layers]


def timestep_charts(layers: Sequence[LayerAlpha], steps: int = 1000) -> list[Chart]:
    """For each layer a line for each merge: the mean over samples by timestep, one standard deviation around it.

    Args:
        layers: The alphas; timesteps that repeat are taken together, scattered ones in ten intervals.
        steps: Timesteps of the schedule.
    """
    drawn = []
    for layer in layers:
        chart = Chart(short_layer(layer.layer), Axis("timestep", 0, steps), SHARE)
        for merge, (name, alphas) in enumerate(zip(layer.merges, layer.alpha.T)):
            places, means, spreads = by_timestep(layer.t, alphas, steps)
            css = series_css(merge)
            chart.band(places, list(means - spreads), list(means + spreads), css)
            chart.line(places, means, css, f"heads {name}")
        drawn.append(chart)
    return drawn


def by_timestep(t: np.ndarray, alphas: np.ndarray, steps: int) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Timesteps, and mean and standard deviation of alpha at each; of ten intervals if there are more than 20."""
    known = np.unique(t)
    groups = [t == value for value in known]
    if len(known) > 20:
        numbers = np.minimum(t * 10 // steps, 9)
        groups = [numbers == i for i in range(10) if (numbers == i).any()]
    places = [float(t[group].mean()) for group in groups]
    return places, np.array([alphas[g].mean() for g in groups]), np.array([alphas[g].std() for g in groups])


def _distributions(layer: LayerAlpha, fine: bool) -> Chart:
    count = len(layer.merges)
    size = (360, 236) if count < WIDE_FROM else (min(36 * count + 56, 1080), 236)
    chart = Chart(short_layer(layer.layer), Axis.of("merge of heads", layer.merges), SHARE, size)
    for merge, (even, alphas) in enumerate(zip(layer.even, layer.alpha.T)):
        chart.line([merge - 0.5, merge + 0.5], [even, even], "rule")
        counts, edges = np.histogram(alphas, bins=BINS if fine else FEW_BINS, range=(0, 1))
        css = series_css(merge)
        halves = 0.42 * counts / max(counts.max(), 1)
        if not fine:
            sides = [merge - np.repeat(halves, 2), merge + np.repeat(halves, 2)[::-1]]
            heights = np.repeat(edges, 2)[1:-1]
            chart.area(np.concatenate(sides).tolist(), np.concatenate([heights, heights[::-1]]).tolist(), css)
        for amount, half, low, high in zip(counts, halves, edges, edges[1:]):
            if amount and fine:
                words = f"heads {layer.merges[merge]}: alpha {low:.2f} to {high:.2f} in {amount} of {len(alphas)}"
                chart.box((merge - half, merge + half), (low, high), f"fill {css}", words=words)
        low, middle, high = np.quantile(alphas, (0.25, 0.5, 0.75))
        chart.stem(merge, low, high, "sink")
        words = f"heads {layer.merges[merge]}: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}"
        chart.dot(merge, middle, "sink", words, hollow=True)
    return chart


def merge_legend(layers: Sequence[LayerAlpha]) -> Mapping[str, str]:
    """The merges of the layer that has most of them -> their classes."""
    most = max(layers, key=lambda layer: len(layer.merges))
    return {f"heads {name}": series_css(i) for i, name in enumerate(most.merges)}


def short_layer(name: str) -> str:
    """The name of a layer without the part that all have."""
    return name.removesuffix(".attn")
