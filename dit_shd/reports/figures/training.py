"""Generated images, and the losses of training."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dit_shd.data.pixels import grid
from dit_shd.reports.figures.style import COLOURS, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[Mapping[str, float]]]
"""Student -> the rows of its metrics.jsonl."""


def grid_figure(images: np.ndarray, columns: int = 10, enlarge: int = 3) -> bytes:
    """Images uint8 [n,y,x,c], row by row, every pixel enlarged."""
    sheet = grid(images, columns, gap=1)
    large = sheet.resize((sheet.width * enlarge, sheet.height * enlarge), resample=0)
    stream = io.BytesIO()
    large.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def loss_figure(curves: Curves, terms: Mapping[str, str], dark: bool = False) -> bytes:
    """One panel for each term (key of metrics.jsonl -> title) with every student that logged it."""

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        axes = figure.subplots(1, len(terms), squeeze=False)[0]
        for ax, (key, title) in zip(axes, terms.items()):
            for colour, (name, rows) in zip(COLOURS, curves.items()):
                points = [(row["step"], row[key]) for row in rows if key in row]
                if points:
                    steps, values = np.array(points, dtype=float).T
                    ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                    ax.plot(steps, smooth(values), color=colour, label=name, linewidth=1.8)
            ax.set_title(title)
            ax.set_xlabel("training step")
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter("{x:g}")
            ax.tick_params(labelsize=8)
            if ax.lines:
                ax.legend(frameon=False)

    return png(draw, (3.6 * len(terms), 3.0), dark)


def smooth(values: np.ndarray, share: float = 0.08) -> np.ndarray:
    """A running mean over about `share` of the points, shorter at both ends."""
    half = int(len(values) * share / 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)
