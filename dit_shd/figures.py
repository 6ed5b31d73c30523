"""The pictures of a report, each as PNG bytes; matplotlib is imported only when one is drawn."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dit_shd.errors import UserError
from dit_shd.inspection import AttentionRows, LayerSqueeze
from dit_shd.pictures import grid

COLOURS = ("#d9822b", "#3a87c8", "#5a9e5a", "#a569bd")
"""One for each student, the same in every picture."""
DPI = 144
LIGHT = {"ink": "#333333", "faint": "#d8d8d8"}
DARK = {"ink": "#cfcfcf", "faint": "#484848"}

Curves = Mapping[str, Sequence[Mapping[str, float]]]
"""Student -> the lines of its metrics.jsonl."""


def require_matplotlib() -> None:
    """Refuse early where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError('report: needs the package matplotlib; install it with: pip install "dit_shd[demo]"') from error


def both(draw: Callable[..., bytes], *args: Any, **kwargs: Any) -> tuple[bytes, bytes]:
    """A figure for light and for dark pages."""
    return draw(*args, **kwargs, dark=False), draw(*args, **kwargs, dark=True)


def grid_figure(images: np.ndarray, columns: int = 10, enlarge: int = 3) -> bytes:
    """Images uint8 [n,y,x,c], row by row, every pixel enlarged."""
    sheet = grid(images, columns, gap=1)
    large = sheet.resize((sheet.width * enlarge, sheet.height * enlarge), resample=0)
    stream = io.BytesIO()
    large.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def loss_figure(curves: Curves, terms: Mapping[str, str], dark: bool = False) -> bytes:
    """One panel for each term (key of metrics.jsonl -> title) with every student that logged it."""

    def draw(figure: Any) -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        axes = figure.subplots(1, len(terms), squeeze=False)[0]
        for ax, (key, title) in zip(axes, terms.items()):
            for colour, (name, lines) in zip(COLOURS, curves.items()):
                points = [(line["step"], line[key]) for line in lines if key in line]
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

    return _png(draw, (3.6 * len(terms), 3.0), dark)


def smooth(values: np.ndarray, share: float = 0.08) -> np.ndarray:
    """A running mean over about `share` of the points, shorter at both ends."""
    half = int(len(values) * share / 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)


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
            ax = _bare(figure.add_subplot(left[i]), title)
            ax.imshow(picture, cmap="gray")
            _mark(ax, token, rows[0].teacher.shape[-1], picture.shape[-1])
        for r, layer in enumerate(rows):
            column = 2
            top = max(float(maps.max()) for _, maps in _groups(layer))
            for name, maps in _groups(layer):
                for k, each in enumerate(maps):
                    title = (f"{name}\n" if r == 0 and k == 0 else "") + _caption(layer, name, k)
                    ax = _bare(figure.add_subplot(sheet[r, column]))
                    ax.set_title(title, loc="left", fontsize=6.2 if name == "squeezed" else 7, linespacing=1.5)
                    ax.imshow(each, cmap="magma", norm=PowerNorm(0.5, 0, top))
                    _mark(ax, token, each.shape[-1], each.shape[-1])
                    if column == 2:
                        ax.set_ylabel(layer.layer.removesuffix(".attn"), fontsize=9)
                    column += 1
                column += 1

    return _png(draw, (0.88 * columns + 1.6, 1.16 * len(rows) + 0.45), dark)


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

    return _png(draw, (max(1.75 * len(layers), 4.0), 3.9), dark)


def _groups(layer: AttentionRows) -> list[tuple[str, np.ndarray]]:
    return [("teacher", layer.teacher), ("squeezed", layer.squeezed), *layer.students.items()]


def _caption(layer: AttentionRows, group: str, k: int) -> str:
    if group != "squeezed":
        return f"head {k + 1}"
    return "+".join(f"{layer.weights[i]:.2f} A{i + 1}" for i in layer.plan[k])


def _bare(ax: Any, title: str = "") -> Any:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.set_title(title, loc="left", fontsize=8)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _mark(ax: Any, token: int, window: int, pixels: int) -> None:
    """A frame around the query token."""
    from matplotlib.patches import Rectangle

    patch = pixels / window
    corner = (token % window * patch - 0.5, token // window * patch - 0.5)
    ax.add_patch(Rectangle(corner, patch, patch, fill=False, edgecolor="#31d0c6", linewidth=1.6))


def _png(draw: Callable[[Any], None], inches: tuple[float, float], dark: bool) -> bytes:
    """Draw into a figure of its own (no pyplot, no global state) and give the PNG."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    theme = DARK if dark else LIGHT
    ink = theme["ink"]
    settings = {
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": ink,
        "axes.titlesize": 10,
        "axes.titlecolor": ink,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": theme["faint"],
        "grid.linewidth": 0.6,
        "xtick.color": ink,
        "ytick.color": ink,
        "figure.facecolor": "none",
    }
    stream = io.BytesIO()
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        figure.savefig(stream, format="png", dpi=DPI, transparent=True)
    return stream.getvalue()
