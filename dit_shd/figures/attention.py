"""Where tokens look."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dit_shd.figures import bare, mark, png
from dit_shd.inspection import AttentionRows


def attention_figure(
    rows: Sequence[AttentionRows], clean: np.ndarray, seen: np.ndarray, token: int, dark: bool = False
) -> bytes:
    """Maps of one query token: the image [y,x], clean and as the models see it, then a line a layer."""
    groups = _groups(rows[0])
    columns = sum(len(maps) for _, maps in groups)
    spacers = len(groups) - 1

    def draw(figure: Any) -> None:
        from matplotlib.colors import PowerNorm

        widths = [1.5, 0.25]
        for i, (_, maps) in enumerate(groups):
            widths += [1.0] * len(maps) + ([0.25] if i < spacers else [])
        sheet = figure.add_gridspec(len(rows), len(widths), width_ratios=widths)
        left = sheet[:, 0].subgridspec(2, 1)
        for i, (picture, title) in enumerate(((clean, "the digit"), (seen, "as the models see it"))):
            ax = bare(figure.add_subplot(left[i]), title)
            ax.imshow(picture, cmap="gray")
            mark(ax, token, rows[0].teacher.shape[-1], picture.shape[-1])
        for r, layer in enumerate(rows):
            column = 2
            top = max(float(maps.max()) for _, maps in _groups(layer))
            for name, maps in _groups(layer):
                for k, each in enumerate(maps):
                    title = (f"{name}\n" if r == 0 and k == 0 else "") + _caption(layer, name, k)
                    ax = bare(figure.add_subplot(sheet[r, column]))
                    ax.set_title(title, loc="left", fontsize=6.2 if name == "squeezed" else 7, linespacing=1.5)
                    ax.imshow(each, cmap="magma", norm=PowerNorm(0.5, 0, top))
                    mark(ax, token, each.shape[-1], each.shape[-1])
                    if column == 2:
                        ax.set_ylabel(layer.layer.removesuffix(".attn"), fontsize=9)
                    column += 1
                column += 1

    return png(draw, (0.88 * columns + 1.6, 1.16 * len(rows) + 0.45), dark)


def _groups(layer: AttentionRows) -> list[tuple[str, np.ndarray]]:
    return [("teacher", layer.teacher), ("squeezed", layer.squeezed), *layer.students.items()]


def _caption(layer: AttentionRows, group: str, k: int) -> str:
    if group != "squeezed":
        return f"head {k + 1}"
    return "+".join(f"{layer.weights[i]:.2f} A{i + 1}" for i in layer.plan[k])
