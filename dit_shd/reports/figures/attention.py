"""Attention maps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dit_shd.analysis.agreement import AttentionRows
from dit_shd.analysis.survey import LayerMaps
from dit_shd.reports.figures.style import bare, mark, panels, panels_size, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attention_figure(
    rows: Sequence[AttentionRows], clean: np.ndarray, noisy: np.ndarray, token: int, dark: bool = False
) -> bytes:
    """Maps of one query token: the image [y,x], clean and with noise, then a line for each layer."""
    groups = _groups(rows[0])
    columns = sum(len(maps) for _, maps in groups)
    spacers = len(groups) - 1

    def draw(figure: "Figure") -> None:
        from matplotlib.colors import PowerNorm

        widths = [1.5, 0.25]
        for i, (_, maps) in enumerate(groups):
            widths += [1.0] * len(maps) + ([0.25] if i < spacers else [])
        sheet = figure.add_gridspec(len(rows), len(widths), width_ratios=widths)
        left = sheet[:, 0].subgridspec(2, 1)
        for i, (picture, title) in enumerate(((clean, "the digit"), (noisy, "with noise"))):
            ax = bare(figure.add_subplot(left[i]), title)
            ax.imshow(picture, cmap="gray")
            mark(ax, token, rows[0].teacher.shape[-2:], picture.shape)
        for r, layer in enumerate(rows):
            column = 2
            top = max(float(maps.max()) for _, maps in _groups(layer))
            for name, maps in _groups(layer):
                for k, attention_map in enumerate(maps):
                    title = (f"{name}\n" if r == 0 and k == 0 else "") + _caption(layer, name, k)
                    ax = bare(figure.add_subplot(sheet[r, column]))
                    ax.set_title(title, loc="left", fontsize=6.2 if name == "squeezed" else 7, linespacing=1.5)
                    ax.imshow(attention_map, cmap="magma", norm=PowerNorm(0.5, 0, top))
                    mark(ax, token, attention_map.shape, attention_map.shape)
                    if column == 2:
                        ax.set_ylabel(layer.layer.removesuffix(".attn"), fontsize=9)
                    column += 1
                column += 1

    return png(draw, (0.88 * columns + 1.6, 1.16 * len(rows) + 0.45), dark)


def maps_figure(layer: LayerMaps, pictures: Mapping[str, np.ndarray], dark: bool = False) -> bytes:
    """A line for each query token of one layer, and one for the mean over all tokens; a column for each head.

    Args:
        layer: The maps.
        pictures: The model's input by title, [y,x] or [y,x,3]; drawn on the left, with the tokens framed.
        dark: Whether it is for a dark page.
    """
    q, h, _ = layer.rows.shape
    lines = [*layer.rows, layer.received]
    rows, columns = layer.keys or (1, 1)
    high = 0.3 if layer.keys is None else min(max(rows / columns, 0.3), 3.0)

    def draw(figure: "Figure") -> None:
        from matplotlib.colors import PowerNorm

        before = len(pictures)
        axes = figure.subplots(q + 1, before + h, squeeze=False)
        for r, maps in enumerate(lines):
            for ax, (title, pixels) in zip(axes[r], pictures.items()):
                bare(ax, title if r == 0 else "")
                ax.imshow(pixels, cmap="gray")
                if r < q and layer.queries is not None:
                    mark(ax, layer.tokens[r], layer.queries, pixels.shape[:2])
            top = float(maps.max())
            for head, ax in enumerate(axes[r, before:]):
                bare(ax, f"head {head + 1}" if r == 0 else "")
                picture = maps[head].reshape(layer.keys or (1, -1))
                ax.imshow(picture, cmap="magma", norm=PowerNorm(0.5, 0, top), aspect=None if layer.keys else "auto")
                if r < q and layer.keys is not None and layer.keys == layer.queries:
                    mark(ax, layer.tokens[r], layer.keys, layer.keys)
            label = f"token {layer.tokens[r]}" if r < q else "mean of all\ntokens"
            axes[r, 0].set_ylabel(label, fontsize=8)

    return png(draw, (0.92 * (len(pictures) + h) + 0.4, (0.92 * high + 0.08) * (q + 1) + 0.2), dark)


def binned_figure(layers: Mapping[str, LayerMaps], dark: bool = False) -> bytes:
    """The map of each layer over all tokens, mean over heads."""

    def draw(figure: "Figure") -> None:
        from matplotlib.colors import PowerNorm

        for ax, (name, layer) in panels(figure, list(layers.items())):
            n, m = layer.token_count, layer.rows.shape[2]
            ax.imshow(layer.binned, cmap="magma", norm=PowerNorm(0.5, 0), extent=(0, m, n, 0), aspect="auto")
            ax.grid(False)
            ax.set_title(name.removesuffix(".attn"), fontsize=8, loc="left")
            ax.set_xlabel("key token", fontsize=8)
            ax.set_ylabel("query token", fontsize=8)
            ax.tick_params(labelsize=7)

    return png(draw, panels_size(len(layers), 2.6, 2.6), dark)


def _groups(layer: AttentionRows) -> list[tuple[str, np.ndarray]]:
    return [("teacher", layer.teacher), ("squeezed", layer.squeezed), *layer.students.items()]


def _caption(layer: AttentionRows, group: str, k: int) -> str:
    if group != "squeezed":
        return f"head {k + 1}"
    return "+".join(f"{layer.weights[i]:.2f} A{i + 1}" for i in layer.plan[k])
